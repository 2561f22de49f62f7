"""One sensor looks at every project's raw data and notes what changed. It starts no run.

A change counts when two looks in a row see the same bytes: a file being copied in is not a version.
"""

import json

import dagster as dg

from assets.line import fingerprint
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects.catalog import Loaded


def sources_sensor(projects: list[Loaded]) -> dg.SensorDefinition:
    paths = {
        (p.name, f"source_{s.name}"): p.path(s.path) for p in projects for s in p.project.dataset.sources
    }

    @dg.sensor(
        name="sources",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Observes every project's sources; changed data shows as a new data version.",
        asset_selection=dg.AssetSelection.assets(*(dg.AssetKey(k) for k in paths)) if paths else None,
    )
    def sources(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        cursor: dict[str, dict[str, str]] = json.loads(context.cursor or "{}")
        seen, told = cursor.get("seen", {}), cursor.get("told", {})
        now_seen: dict[str, str] = {}
        events: list[dg.AssetObservation] = []
        for name, path in paths.items():
            label = "/".join(name)
            try:
                digest = fingerprint(path)
            except InputInvalid as error:
                context.log.warning(str(error))
                continue
            now_seen[label] = digest
            if seen.get(label) == digest and told.get(label) != digest:
                told[label] = digest
                tags = {"dagster/data_version": digest}
                metadata = {"path": str(path), "bytes": path.stat().st_size}
                events.append(dg.AssetObservation(dg.AssetKey(name), metadata=metadata, tags=tags))
        return dg.SensorResult(asset_events=events, cursor=json.dumps({"seen": now_seen, "told": told}))

    return sources
