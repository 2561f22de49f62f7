"""The code location: projects to assets, checks, sensors, schedule, resources. The only wiring."""

import logging
import warnings

import dagster as dg

from assets.builder import project_assets
from ftaas_pipelines import settings
from ftaas_pipelines.projects import catalog
from resources.launcher import SubprocessLauncher
from resources.tracking import Tracking
from sensors.alerts import alerts_sensor
from sensors.champions import champions_sensor
from sensors.decisions import decisions_sensor
from sensors.notices import notices_sensor
from sensors.retraining import retraining
from sensors.sources import sources_sensor
from sensors.withdrawal import withdrawal_sensor

# What we use of Dagster beyond its stable part is pinned by the lock and named in docs/decisions.md.
for _kind in (dg.BetaWarning, dg.PreviewWarning):
    warnings.filterwarnings("ignore", category=_kind)


def build(config: settings.Settings, only: str | None = None) -> dg.Definitions:
    """Everything Dagster shows, from the projects as they are right now.

    A project that is wrong is left out and said so; it never takes the others down. `only` narrows
    it to one project, for a run in a process of its own.
    """
    projects, problems = catalog.load_all(config.projects, config.policy)
    projects = [p for p in projects if only in (None, p.name)]
    for problem in problems:
        logging.getLogger("ftaas").warning("left out: %s", problem)
    found = [definition for loaded in projects for definition in project_assets(loaded)]
    timed = retraining(projects)
    groups = [p.name for p in projects]
    automation = dg.AutomationConditionSensorDefinition(
        "automation",
        target=dg.AssetSelection.groups(*groups, include_sources=True) if groups else dg.AssetSelection.all(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=10,
        description="Carries every line on by itself, from one gate to the next.",
    )
    return dg.Definitions(
        assets=[d for d in found if not isinstance(d, dg.AssetChecksDefinition)],
        asset_checks=[d for d in found if isinstance(d, dg.AssetChecksDefinition)],
        sensors=[
            sources_sensor(projects),
            decisions_sensor(projects),
            notices_sensor(projects),
            withdrawal_sensor,
            champions_sensor,
            alerts_sensor,
            automation,
        ],
        jobs=[timed[0]] if timed else [],
        schedules=[timed[1]] if timed else [],
        resources={"launcher": SubprocessLauncher(), "tracking": Tracking()},
        # Heavy stages are processes of their own: a process per step would only add its start.
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """What `dagster dev -m ftaas_pipelines.definitions` loads. A function: importing builds nothing."""
    return build(settings.load())
