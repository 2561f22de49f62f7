"""The type of what a module of assets defines."""

from typing import Any

import dagster as dg

Definition = dg.AssetsDefinition | dg.AssetSpec | dg.AssetChecksDefinition | Any
