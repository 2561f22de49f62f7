"""A failed run tells a person: stage, cause, log, newest checkpoint, and the command that goes on."""

import logging
import smtplib
import ssl
from email.message import EmailMessage
from typing import Any
from urllib.parse import unquote, urlparse

import dagster as dg
import httpx

from assets import activity
from ftaas_pipelines import settings
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.training.checkpoints import MARKER

TIMEOUT_S = 10
logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs the URL, which may be a secret


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
            httpx.post(config.alert_webhook, json=alert, timeout=TIMEOUT_S).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            failed.append(f"webhook: {type(error).__name__}")
    if config.alert_email and config.smtp_url:
        try:
            _mail(alert, config)
        except (OSError, ValueError) as error:  # ValueError: the port of the URL is no number
            failed.append(f"mail: {type(error).__name__}")
    return failed


def _mail(alert: dict[str, Any], config: Settings) -> None:
    url = urlparse(config.smtp_url)
    message = EmailMessage()
    message["Subject"] = f"ftaas: {alert['project']}/{alert['stage']} failed"
    message["To"], message["From"] = config.alert_email, config.alert_email
    message.set_content("\n".join(f"{key}: {value}" for key, value in alert.items()))
    with smtplib.SMTP(url.hostname or "localhost", url.port or 25, timeout=TIMEOUT_S) as server:
        if url.username:
            server.starttls(context=ssl.create_default_context())  # without one, no certificate is checked
            server.login(unquote(url.username), unquote(url.password or ""))
        server.send_message(message)


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
