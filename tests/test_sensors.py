"""What carries the line on: sources, decisions, alerts, the schedule and the automation conditions.

Dagster's instance, the ledger and the store are the real ones. The mail server is a stand-in that speaks
SMTP (with STARTTLS and AUTH) on the wire, the webhook a real local HTTP server.
"""

import datetime
import logging
import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from conftest import rows
from receivers import Hook, MailStandIn, certificate, receivers

from assets import activity
from assets.line import Line, open_line
from ftaas_pipelines import settings
from ftaas_pipelines.definitions import build
from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.review.sign_offs import requests
from ftaas_pipelines.training.checkpoints import mark
from sensors.alerts import alerts_sensor, describe, send
from sensors.decisions import sign_off_events

# definitions.py ignores Dagster's beta and preview warnings for itself; pytest resets that.
pytestmark = [
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),
    pytest.mark.filterwarnings("ignore::dagster.PreviewWarning"),
]
Projects = Callable[..., Path]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


def line(name: str = "codes") -> Line:
    return open_line(name, settings.load())


# -- sources ------------------------------------------------------------------------------------------


def test_changed_data_counts_when_two_looks_see_the_same_bytes(
    project_factory: Projects, instance: dg.DagsterInstance
) -> None:
    data = project_factory("codes").parent / "data" / "rows.jsonl"
    project_factory("others")
    repository = build(settings.load()).get_repository_def()
    sensor = repository.get_sensor_def("sources")
    cursor: str | None = None

    def look() -> dict[str, str]:
        nonlocal cursor
        context = dg.build_sensor_context(instance, cursor, repository_def=repository)
        tick = sensor.evaluate_tick(context)
        assert not tick.run_requests, "looking at data starts no run"
        assert all(isinstance(e, dg.AssetObservation) for e in tick.asset_events)
        cursor = tick.cursor
        return {e.asset_key.path[0]: e.tags["dagster/data_version"] for e in tick.asset_events}

    assert look() == {}
    assert set(look()) == {"codes", "others"}
    assert look() == {}

    whole = data.read_bytes()
    data.write_bytes(whole[:100])
    assert look() == {}, "a file being copied in is not a version"
    data.write_bytes(whole + whole[: whole.index(b"\n") + 1])
    assert look() == {}
    assert look() == {"codes": line().source_digests["rows"]}
    assert look() == {}

    data.unlink()
    assert look() == {} and look() == {}, "a missing file silences nobody and stops nothing"
    data.write_bytes(whole)
    assert look() == {}
    assert look() == {"codes": line().source_digests["rows"]}


# -- decisions ----------------------------------------------------------------------------------------


def put_splits_before_reviewers(name: str = "codes") -> str:
    """Dataset and splits in the store as the stages would leave them, reviews open; the splits' digest."""
    now = line(name)
    for kind, spec_of in (("dataset", Line.dataset_spec), ("splits", Line.splits_spec)):
        with now.store.create(kind, spec_of(line(name)).input_digest) as draft:
            # The content names its sources, so other bytes are another digest, as in a real one.
            facts = {"kind": kind, "counts": {"train": 90, "test": 30}, "dataset": ""}
            draft.content.update(sources=now.source_digests, **facts)
    requirement = line(name).training_requirement()
    requests.open_requests(now.ledger, requirement, asset="dataset_sign_off", summary={}, actor="owen")
    return requirement.digest


def say(decision: str, name: str = "codes", role: str = "") -> None:
    ledger = line(name).ledger
    for review in requests.reviews(ledger, project=name, only_open=False):
        if review.role == (role or review.role) and review.state != "superseded":
            requests.decide(ledger, review.id, decision=decision, comment="looked", by=review.who[0])


def test_a_sign_off_is_told_once_per_digest_and_again_after_it_was_withdrawn(
    project_factory: Projects, instance: dg.DagsterInstance
) -> None:
    data = project_factory("codes").parent / "data" / "rows.jsonl"
    told: dict[str, str] = {}
    assert sign_off_events(line(), told, instance) == [], "nothing is made yet"
    first = put_splits_before_reviewers()
    assert sign_off_events(line(), told, instance) == []
    say("approve", role="sme")
    assert sign_off_events(line(), told, instance) == [], "half a sign-off is none"
    say("approve", role="rai")
    (event,) = sign_off_events(line(), told, instance)
    assert event.asset_key == dg.AssetKey(["codes", "dataset_sign_off"])
    assert event.tags == {"dagster/data_version": first} and "sam.expert@example.com as sme" in str(
        event.metadata
    )
    assert sign_off_events(line(), told, instance) == []

    say("reject", role="rai")
    assert sign_off_events(line(), told, instance) == [] and told == {"codes/dataset_sign_off": ""}
    say("approve", role="rai")
    assert [e.tags["dagster/data_version"] for e in sign_off_events(line(), told, instance)] == [first]

    # Other data asks anew; the old data put back finds its old sign-off, and that is told again.
    whole = data.read_bytes()
    data.write_bytes(whole + whole[: whole.index(b"\n") + 1])
    assert sign_off_events(line(), told, instance) == []
    second = put_splits_before_reviewers()
    assert second != first and sign_off_events(line(), told, instance) == []
    say("approve")
    assert [e.tags["dagster/data_version"] for e in sign_off_events(line(), told, instance)] == [second]
    data.write_bytes(whole)
    assert [e.tags["dagster/data_version"] for e in sign_off_events(line(), told, instance)] == [first]


def test_one_broken_project_does_not_silence_the_others(
    project_factory: Projects, instance: dg.DagsterInstance
) -> None:
    broken = project_factory("broken")
    project_factory("codes")
    repository = build(settings.load()).get_repository_def()
    sensor = repository.get_sensor_def("decisions")
    put_splits_before_reviewers()
    say("approve")
    broken.write_text("name: broken\n", "utf-8")
    tick = sensor.evaluate_tick(dg.build_sensor_context(instance, repository_def=repository))
    assert [e.asset_key.path for e in tick.asset_events] == [["codes", "dataset_sign_off"]] * 2
    assert [type(e) for e in tick.asset_events] == [dg.AssetMaterialization, dg.AssetCheckEvaluation]
    context = dg.build_sensor_context(instance, tick.cursor, repository_def=repository)
    again = sensor.evaluate_tick(context)
    assert not again.asset_events and not again.run_requests


# -- alerts -------------------------------------------------------------------------------------------


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    with receivers() as start:
        yield start


def failed_training(config: settings.Settings) -> dg.DagsterRun:
    """A run whose adapter failed at its input "abc", with two whole checkpoints and one that is not."""
    selection = [dg.AssetKey(["codes", name]) for name in ("adapter_lora", "candidate")]
    run = dg.DagsterRun(job_name="__ASSET_JOB", asset_selection=frozenset(selection))
    error = FtaasError("the disk is full", "codes/adapter_lora", do="make room")
    activity.note(config.home, "codes", "adapter_lora", "failed", run.run_id, "abc", error)
    activity.note(config.home, "codes", "candidate", "failed", "another-run", "", error)
    for step in (2, 10, 11):
        folder = config.store_path / "work" / "abc" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if step < 11:
            mark(folder, 1.0)
    return run


def test_an_alert_says_stage_cause_log_checkpoint_and_retry_by_webhook_and_by_mail(
    home: Path,
    serve: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    pem = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    hook, mail = serve(Hook, status=204), serve(MailStandIn, tls=tls)
    monkeypatch.setenv("FTAAS_ALERT_WEBHOOK", f"http://127.0.0.1:{hook.port}/hook-s3cret")
    monkeypatch.setenv("FTAAS_ALERT_EMAIL", "ops@example.com")
    monkeypatch.setenv("FTAAS_SMTP_URL", f"smtp://robot:p%40ss-s3cret@localhost:{mail.port}")
    config = settings.load()

    alert = describe(failed_training(config), "Steps failed", config)
    assert alert["project"] == "codes" and alert["stage"] == "adapter_lora"
    assert "the disk is full" in alert["cause"] and "make room" in alert["cause"]
    assert alert["log"] == str(config.home / "logs" / "codes" / "adapter_lora.log")
    assert alert["checkpoint"] == "checkpoint-10", "the newest that is whole"
    assert alert["retry"] == "ftaas run codes"
    assert send(alert, config) == []
    assert hook.got == [alert]
    secured, login, message = mail.got
    assert secured == "tls" and login == "\0robot\0p@ss-s3cret"
    assert "To: ops@example.com" in message and "codes/adapter_lora failed" in message
    assert all(f"{field}: " in message for field in ("stage", "cause", "log", "checkpoint", "retry"))
    assert "s3cret" not in caplog.text and "s3cret" not in message


def test_nothing_that_is_wrong_with_an_alert_fails_the_sensor_or_tells_a_secret(
    home: Path,
    instance: dg.DagsterInstance,
    serve: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)

    @dg.op
    def fails() -> None:
        raise RuntimeError("the machine is tired")

    @dg.job
    def night() -> None:
        fails()

    result = night.execute_in_process(
        instance=instance, raise_on_error=False, tags={"ftaas/project": "codes"}
    )
    (event,) = [e for e in result.all_events if e.event_type_value == "PIPELINE_FAILURE"]
    refuses = serve(Hook, status=500)
    context = dg.build_run_status_sensor_context("alerts", event, instance, result.dagster_run)
    capfd.readouterr()
    monkeypatch.setenv("FTAAS_ALERT_EMAIL", "ops@example.com")
    for webhook, smtp in (
        (f"http://127.0.0.1:{refuses.port}/hook-s3cret", "smtp://robot:s3cret@127.0.0.1:1"),
        ("http://127.0.0.1:1/hook-s3cret", "smtp://robot:half/s3cret@127.0.0.1"),
        ("http://127.0.0.1:port-s3cret/", ""),
    ):
        monkeypatch.setenv("FTAAS_ALERT_WEBHOOK", webhook)
        monkeypatch.setenv("FTAAS_SMTP_URL", smtp)
        failed = send({"project": "codes", "stage": ""}, settings.load())
        assert [way.partition(":")[0] for way in failed] == (["webhook", "mail"] if smtp else ["webhook"])
        alerts_sensor(context.for_run_failure())
    assert refuses.got[-1]["project"] == "codes" and refuses.got[-1]["retry"] == "ftaas run codes"
    shown = capfd.readouterr()
    assert "s3cret" not in caplog.text + shown.out + shown.err


# -- the schedule -------------------------------------------------------------------------------------


def test_one_schedule_serves_all_and_runs_only_what_is_due_and_changed(
    project_factory: Projects, instance: dg.DagsterInstance
) -> None:
    project_factory("plain")
    assert not build(settings.load()).schedules

    nightly, weekly = "retraining: {cron: '0 2 * * *'}\n", "retraining: {cron: '30 4 * * 1'}\n"
    project_factory("codes", extra=nightly)
    # Rows of its own: the same rows under the same options are the same splits, made once for all.
    project_factory("settled", extra=nightly, data=rows(60))
    project_factory("weekly", extra=weekly)
    put_splits_before_reviewers("settled")
    repository = build(settings.load()).get_repository_def()
    (schedule,) = repository.schedule_defs

    def due(*at: int) -> list[tuple[str | None, list[str]]]:
        context = dg.build_schedule_context(
            instance,
            scheduled_execution_time=datetime.datetime(*at, tzinfo=datetime.UTC),
            repository_def=repository,
        )
        found = schedule.evaluate_tick(context).run_requests or []
        return [(r.run_key, ["/".join(k.path) for k in r.asset_selection or []]) for r in found]

    steps = ["dataset", "row_review_request", "splits", "dataset_review_request"]
    assert due(2026, 11, 17, 2, 0) == [("codes-202611170200", [f"codes/{s}" for s in steps])]
    assert due(2026, 11, 16, 4, 30) == [("weekly-202611160430", [f"weekly/{s}" for s in steps])]
    data = Path(os.environ["FTAAS_PROJECTS"]) / "settled" / "data" / "rows.jsonl"
    data.write_bytes(data.read_bytes() * 2)
    assert [key for key, _ in due(2026, 11, 17, 2, 0)] == ["codes-202611170200", "settled-202611170200"]


# -- automation ---------------------------------------------------------------------------------------


class Daemon:
    """Ticks of the automation sensor over events that are reported as runs would leave them."""

    def __init__(self, instance: dg.DagsterInstance, project: str = "codes"):
        self._instance, self._project = instance, project
        self._definitions, self._cursor = build(settings.load()), None

    def made(self, version: str, *names: str) -> "Daemon":
        self._report(dg.AssetMaterialization, version, names)
        return self

    def observed(self, version: str) -> "Daemon":
        self._report(dg.AssetObservation, version, ("source_rows",))
        return self

    def _report(self, kind: type[Any], version: str, names: tuple[str, ...]) -> None:
        for name in names:
            tags = {"dagster/data_version": version}
            self._instance.report_runless_asset_event(kind(dg.AssetKey([self._project, name]), tags=tags))

    def tick(self) -> set[str]:
        """The assets that one tick launches."""
        found = dg.evaluate_automation_conditions(self._definitions, self._instance, cursor=self._cursor)
        self._cursor = found.cursor
        return {
            r.key.path[-1]
            for r in found.results
            if isinstance(r.key, dg.AssetKey) and found.get_num_requested(r.key)
        }

    def rests(self) -> bool:
        return not any(self.tick() for _ in range(4))


UP_TO_REVIEW = ("dataset", "row_review_request", "splits", "dataset_review_request")


def test_the_line_goes_on_by_itself_from_gate_to_gate(
    project_factory: Projects, instance: dg.DagsterInstance
) -> None:
    project_factory("codes")
    daemon = Daemon(instance)
    assert daemon.rests(), "what no person ever made is not made by itself"
    assert daemon.observed("s1").rests()
    assert daemon.made("v1", *UP_TO_REVIEW).rests()
    assert daemon.observed("s1").rests(), "the same bytes, seen again"

    assert daemon.observed("s2").tick() == {"dataset"}
    assert daemon.made("v1", "dataset").rests(), "other bytes, the same records"
    assert daemon.observed("s3").tick() == {"dataset"}
    assert daemon.made("v2", "dataset").tick() == {"row_review_request", "splits"}
    assert daemon.made("v2", "row_review_request", "splits").tick() == {"dataset_review_request"}
    assert daemon.made("v2", "dataset_review_request").rests(), "nothing trains before it is signed"

    first = {"adapter_lora", "candidate", "evaluation", "bento", "release", "approval_request_staging"}
    assert daemon.made("v2", "dataset_sign_off").tick() == first, "up to the next gate, in one run"
    made = [name for name in first if name != "adapter_lora"]
    assert daemon.made("a1", "adapter_lora", *made).rests(), "nothing is deployed before it is approved"
    opened = {"deployment_staging", "approval_request_production"}
    assert daemon.made("a1", "approval_staging").tick() == opened
    assert daemon.made("a1", *opened).rests()
    assert daemon.made("a1", "approval_production").tick() == {"deployment_production"}
    assert daemon.made("a1", "deployment_production").rests()

    # The same content again moves nothing; other content goes on from where it changed.
    assert daemon.made("v2", *UP_TO_REVIEW).rests()
    assert daemon.made("a1", "adapter_lora", *made).rests()
    assert daemon.made("a2", "adapter_lora").tick() == {"candidate"}


def test_what_a_gate_refused_is_not_tried_for_ever(
    project_factory: Projects, instance: dg.DagsterInstance
) -> None:
    project_factory("codes")
    daemon = Daemon(instance)
    daemon.tick()
    daemon.made("v1", *UP_TO_REVIEW).tick()
    assert "bento" in daemon.made("v1", "dataset_sign_off").tick()
    # The run ends at the Bento: the evaluation was made, the adapter is not good enough.
    daemon.made("e1", "adapter_lora", "candidate", "evaluation").tick()
    assert daemon.rests()
    assert "bento" in daemon.made("e2", "evaluation").tick(), "another evaluation is another chance"
    assert daemon.rests()
