"""Tells people that a review waits for them: by mail, by webhook, and again while it still waits."""

import time
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from ftaas_pipelines import settings
from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.governance.ledger import Ledger, open_ledger
from ftaas_pipelines.governance.requirement import policy_version
from ftaas_pipelines.monitoring import outbox
from ftaas_pipelines.monitoring.backoff import Backoff
from ftaas_pipelines.monitoring.outbox import NotSent
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.review import notices
from ftaas_pipelines.review.notices import NOTIFIED, Channel, Notice
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import hold, short

ACTOR = "platform"
_PATIENCE_S = 20.0  # Dagster gives a sensor's tick 60 s, and one message may take ten


def channels(config: Settings) -> list[Channel]:
    """The ways that are set."""
    found: list[Channel] = []
    if config.notify_email and config.smtp_url:
        found.append("mail")
    if config.notify_webhook:
        found.append("webhook")
    return found


def tell(config: Settings, ledger: Ledger, projects: Collection[str], now: datetime, log: Any) -> int:
    """Send what is due and remember it; a way that fails is tried again later and never raises.

    Each message is remembered after it left: killed in between, it is sent once more, never lost.

    Args:
        projects: names of those that are there; a review of a project that is gone reminds nobody.

    Returns:
        How many messages left.
    """
    ways = channels(config)
    if not ways:
        return 0
    with hold(config.home / "notices.lock", wait_s=1.0):  # a second daemon on this home tells nobody twice
        told = notices.memory(ledger.entries(NOTIFIED, authentic=True))
        waiting = [w for name in sorted(projects) for w in notices.waiting(ledger, name)]
        todo = notices.due(waiting, told, ways, config.remind_days, now)
        backoff, sent, deadline = Backoff(config.home), 0, time.monotonic() + _PATIENCE_S
        for notice in todo:
            if time.monotonic() > deadline:
                log.info(f"{len(todo)} messages are due: the rest follows with the next tick")
                break
            sent += _tell_one(config, ledger, notice, backoff, now, log)
    return sent


def _tell_one(
    config: Settings, ledger: Ledger, notice: Notice, backoff: Backoff, now: datetime, log: Any
) -> bool:
    way = notice.channel
    personal = f"mail to {notice.who[0]}"
    if backoff.waits(way, now) or (way == "mail" and backoff.waits(personal, now)):
        return False
    try:
        if way == "mail":
            outbox.mail(config, notice.who[0], notice.subject, notice.text)
        else:
            outbox.post(config.notify_webhook, notice.slack, "FTAAS_NOTIFY_WEBHOOK")
    except NotSent as error:
        backoff.failed(personal if error.only_this else way, str(error), now)
        log.warning(f"review {notice.waiting.id}: {error}")
        return False
    backoff.worked(way)
    if way == "mail":
        backoff.worked(personal)
    waiting = notice.waiting
    ledger.append(NOTIFIED, waiting.subject, notice.body, project=waiting.project, actor=ACTOR)
    log.info(f"told {len(notice.who)} by {way}: {waiting.project} {waiting.id} {short(waiting.subject)}")
    return True


def notices_sensor(projects: list[Loaded]) -> dg.SensorDefinition:
    names = {p.name for p in projects}

    @dg.sensor(
        name="notices",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells people by mail or webhook that a review waits for them, and reminds them.",
    )
    def notices_tick(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        config = settings.load()
        if not channels(config):
            return dg.SkipReason("set FTAAS_NOTIFY_EMAIL=1 and FTAAS_SMTP_URL, or FTAAS_NOTIFY_WEBHOOK")
        try:
            ledger = open_ledger(config, policy_version(load_policy(config.policy)))
            sent = tell(config, ledger, names, datetime.now(UTC), context.log)
        except FtaasError as error:
            return dg.SkipReason(str(error))
        return dg.SkipReason(f"{sent} messages left")

    return notices_tick
