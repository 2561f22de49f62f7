"""A failed run tells a person: stage, cause, log, newest checkpoint, and the command that goes on."""

from typing import Any

import dagster as dg

from assets import activity
from ftaas_pipelines import settings
from ftaas_pipelines.monitoring import outbox
from ftaas_pipelines.monitoring.outbox import NotSent
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.training.checkpoints import MARKER


def describe(run: dg.DagsterRun, error: str, config: Settings) -> dict[str, Any]:
    """What the alert says about a failed run."""
    failed: list[dict[str, str]] = []
    for key in sorted(run.asset_selection or [], key=lambda k: list(k.path)):
        if len(key.path) != 2:
            continue
        project, asset = key.path
        last = activity.read(config.home, project, asset)
        if last and last.state == "failed" and last.run_id == run.run_id:
            failed.append({"project": project, "asset": asset, "cause": last.error, "input": last.input})
    first = (
        failed[0]
        if failed
        else {
            "project": run.tags.get("ftaas/project", run.job_name),
            "asset": "",
            "cause": error,
            "input": "",
        }
    )
    work = config.store_path / "work" / first["input"]
    whole = [marker.parent.name for marker in work.glob(f"checkpoint-*/{MARKER}")] if first["input"] else []
    return {
        "project": first["project"],
        "stage": first["asset"],
        "cause": first["cause"],
        "run": f"http://127.0.0.1:{config.port_dagster}/runs/{run.run_id}",
        "log": str(activity.log_path(config.home, first["project"], first["asset"]))
        if first["asset"]
        else "",
        "checkpoint": max(whole, key=lambda name: int(name.rpartition("-")[2]), default=""),
        "retry": f"ftaas run {first['project']}",
    }


def send(alert: dict[str, Any], config: Settings) -> list[str]:
    """Send by every way that is set. Returns the ways that failed, which never fail the sensor."""
    failed: list[str] = []
    if config.alert_webhook:
        try:
            outbox.post(config.alert_webhook, alert, "FTAAS_ALERT_WEBHOOK")
        except NotSent as error:
            failed.append(f"webhook: {error}")
    if config.alert_email and config.smtp_url:
        subject = f"ftaas: {alert['project']}/{alert['stage']} failed"
        text = "\n".join(f"{key}: {value}" for key, value in alert.items())
        try:
            outbox.mail(config, config.alert_email, subject, text)
        except NotSent as error:
            failed.append(f"mail: {error}")
    return failed


@dg.run_failure_sensor(
    name="alerts",
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Mails or posts every failed run, where FTAAS_ALERT_EMAIL or FTAAS_ALERT_WEBHOOK is set.",
)
def alerts_sensor(context: dg.RunFailureSensorContext) -> None:
    config = settings.load()
    alert = describe(context.dagster_run, context.failure_event.message or "", config)
    for problem in send(alert, config):
        context.log.warning(f"the alert could not be sent by {problem}")
