"""One visible schedule for every project with a `retraining.cron`: take changed data at these times."""

from typing import Any

import dagster as dg
from croniter import croniter

from assets.line import open_line
from ftaas_pipelines import settings
from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.projects.catalog import Loaded

JOB = "retrain"
_STEPS = ("dataset", "row_review_request", "splits", "dataset_review_request")


def retraining(projects: list[Loaded]) -> tuple[Any, dg.ScheduleDefinition] | None:
    """The job that takes changed data and asks for its sign-off, and the schedule that starts it."""
    timed = {p.name: p.project.retraining.cron for p in projects if p.project.retraining.cron}
    if not timed:
        return None
    job = dg.define_asset_job(
        JOB,
        selection=dg.AssetSelection.assets(*(dg.AssetKey([name, s]) for name in timed for s in _STEPS)),
        description="Takes changed data of projects with a retraining.cron and asks for its sign-off.",
    )

    @dg.schedule(
        name="retrain_on_schedule",
        cron_schedule=sorted({str(cron) for cron in timed.values()}),
        job=job,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="At the times of each project's retraining.cron; runs only where data changed.",
    )
    def schedule(context: dg.ScheduleEvaluationContext):
        for name, cron in timed.items():
            at = context.scheduled_execution_time
            if not croniter.match(str(cron), at):
                continue
            try:
                line = open_line(name, settings.load())
                changed = line.splits is None
            except FtaasError as error:
                context.log.warning(str(error))
                continue
            if changed:
                keys = [dg.AssetKey([name, step]) for step in _STEPS]
                yield dg.RunRequest(run_key=f"{name}-{at:%Y%m%d%H%M}", asset_selection=keys)

    return job, schedule
