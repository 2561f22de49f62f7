"""What every asset of a project carries: key, group, owners, tags, kinds."""

from typing import Any

import dagster as dg

from ftaas_pipelines.projects.catalog import Loaded


def key(loaded: Loaded, name: str) -> dg.AssetKey:
    return dg.AssetKey([loaded.name, name])


def common(loaded: Loaded, name: str, description: str, *kinds: str) -> dict[str, Any]:
    """The keyword arguments that `@asset` and `AssetSpec` share."""
    project = loaded.project
    return {
        "key": key(loaded, name),
        "group_name": loaded.name,
        "description": description,
        "owners": list(project.people.owners),
        "kinds": set(kinds),
        "tags": {
            "task": project.task,
            "risk_tier": project.risk_tier,
            "sensitivity": project.data_sensitivity,
        },
    }
