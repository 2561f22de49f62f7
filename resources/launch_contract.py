"""What every launcher of stages takes and gives back, wherever the stage then runs."""

from dataclasses import dataclass
from typing import Any, Protocol

import dagster as dg

Context = dg.AssetExecutionContext | dg.OpExecutionContext


class Listener(Protocol):
    """Who is told of a stage's figures while it works: see `resources.tracking.TrackedRun`."""

    def metrics(self, step: int, values: dict[str, float], trial: int | None = None) -> None: ...

    def trial(self, number: int, values: dict[str, Any], state: str, loss: float | None) -> None: ...


@dataclass(frozen=True)
class StageResult:
    """What a stage reported: the digest it made, and whether it was there already."""

    digest: str
    reused: bool
    seconds: float
