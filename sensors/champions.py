"""One sensor lets MLflow's alias `champion` follow the ledger, which rules write to without MLflow."""

import json

import dagster as dg

from ftaas_pipelines import settings
from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.governance.ledger import open_ledger
from resources.tracking import Tracking


@dg.sensor(
    name="champions",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="MLflow's champion is the ledger's, also where a rule of `serving.rollout` moved it.",
)
def champions_sensor(context: dg.SensorEvaluationContext, tracking: Tracking) -> dg.SkipReason:
    config = settings.load()
    told: dict[str, str] = json.loads(context.cursor or "{}")
    try:
        entries = open_ledger(config).entries("champion", authentic=True)
    except FtaasError as error:
        return dg.SkipReason(str(error))
    newest = {entry.project: entry for entry in entries}
    for project, entry in newest.items():
        if told.get(project) == entry.hash:
            continue
        try:
            tracking.champion(config.mlflow, project, entry.subject)
        except Exception as error:  # MLflow is away: the next look tries again
            context.log.warning(f"{project}: the champion could not be told MLflow: {error}")
            continue
        told[project] = entry.hash
    context.update_cursor(json.dumps(told))
    return dg.SkipReason("the champions of MLflow are the ledger's")
