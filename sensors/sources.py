"""One sensor looks at every project's raw data and notes what changed. It starts no run.

A change counts when two looks in a row see the same bytes: a file being copied in is not a version.
Remote places are looked at every five minutes, each in a thread of its own: a slow one is landed while
the others are told, and one that fails is a line in the log.
"""

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import dagster as dg

from assets.source import look, seen
from ftaas_pipelines.data.sources.landing import Landing
from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.projects.catalog import Loaded

T = TypeVar("T")
REMOTE_EVERY_S = 300.0
_PATIENCE_S = 20.0  # Dagster gives a sensor's tick 60 s


def sources_sensor(projects: list[Loaded]) -> dg.SensorDefinition:
    watched = {(p.name, f"source_{s.name}"): (p, s) for p in projects for s in p.project.dataset.sources}
    running: dict[str, Future[Landing]] = {}

    @dg.sensor(
        name="sources",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Observes every project's sources; changed data shows as a new data version.",
        asset_selection=dg.AssetSelection.assets(*(dg.AssetKey(k) for k in watched)) if watched else None,
    )
    def sources(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        cursor: dict[str, dict[str, str]] = json.loads(context.cursor or "{}")
        before, told = cursor.get("seen", {}), cursor.get("told", {})
        for (project, asset), (loaded, source) in watched.items():
            label = f"{project}/{asset}"
            if label not in running:
                running[label] = _started(lambda p=loaded, s=source: look(p, s, REMOTE_EVERY_S, wait_s=0))
        found = _finished(running, context.log)
        events: list[dg.AssetObservation] = []
        for label, landing in found.items():
            if before.get(label) == landing.sha256 and told.get(label) != landing.sha256:
                told[label] = landing.sha256
                tags = {"dagster/data_version": landing.sha256}
                key = dg.AssetKey(label.split("/"))
                events.append(dg.AssetObservation(key, metadata=seen(landing), tags=tags))
        still = {label: before[label] for label in running if label in before}
        now = {**still, **{label: landing.sha256 for label, landing in found.items()}}
        return dg.SensorResult(asset_events=events, cursor=json.dumps({"seen": now, "told": told}))

    return sources


def _started(work: Callable[[], T]) -> "Future[T]":
    """The work in a thread that neither a tick nor the end of the process waits for."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _finished(running: dict[str, "Future[Landing]"], log: Any) -> Mapping[str, Landing]:
    """What the looks saw that ended in time, in order; those that go on stay for the next tick."""
    wait(running.values(), timeout=_PATIENCE_S)
    found: dict[str, Landing] = {}
    for label in sorted(running):
        if not running[label].done():
            log.info(f"{label} is still being landed")
            continue
        try:
            found[label] = running.pop(label).result()
        except FtaasError as error:  # one source must not silence the others
            log.warning(f"{label}: {error}")
    return found
