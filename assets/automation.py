"""When the line goes on by itself, while `make dev` or a daemon runs."""

from typing import Any

import dagster as dg

from ftaas_pipelines.projects.project import Project

C = dg.AutomationCondition
Condition = dg.AutomationCondition[Any]


def carry_on() -> Condition:
    """Something upstream has other content than before, or this was never made from what is there.

    `data_version_changed` and not `eager`: an upstream asset made again with the same content makes
    nothing stale, so nothing is trained or deployed for it. And `newly_missing`, which stays due until
    it is requested once: `missing` would ask again every second tick for what a gate has refused.
    """
    due = C.any_deps_match(C.data_version_changed()) | C.newly_missing()
    return _quietly(due)


def take_changed_data(project: Project) -> Condition | None:
    """Changed sources of a dataset that a person made once. With a cron the schedule takes them."""
    if project.retraining.cron or not project.retraining.on_change:
        return None
    return _quietly(C.any_deps_match(C.data_version_changed()) & ~C.missing())


def when_signed(sign_off: dg.AssetKey) -> Condition:
    """A valid sign-off was reported: only that opens what stands behind a gate."""
    signed = C.any_deps_match(C.newly_updated()).allow(dg.AssetSelection.assets(sign_off))
    return _quietly(signed)


def _quietly(due: Condition) -> Condition:
    once = due.since(C.newly_requested() | C.newly_updated())
    return once & ~C.any_deps_missing() & ~C.any_deps_in_progress() & ~C.in_progress()
