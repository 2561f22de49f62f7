"""Who is told that a review waits, when, and how often. The ledger is real, the receivers are local."""

import logging
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from receivers import Hook, MailStandIn, certificate, receivers

from ftaas_pipelines import settings
from ftaas_pipelines.governance.gates import Requirement
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.monitoring.backoff import Backoff
from ftaas_pipelines.review import notices
from ftaas_pipelines.review.sign_offs import requests
from ftaas_pipelines.settings import Settings
from sensors.notices import notices_sensor, tell

DIGEST = "a" * 64
PEOPLE = {"sme": ["sam@example.com", "eva@example.com"], "rai": ["rita@example.com"]}
NOW = datetime.now(UTC)
LOG = logging.getLogger("test")
Serve = Callable[..., Any]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with receivers() as start:
        yield start


@pytest.fixture
def ledger(home: Path) -> Ledger:
    config = settings.load()
    return Ledger(config.ledger, config.home)


def ask(ledger: Ledger, digest: str = DIGEST, project: str = "codes", sme: int = 2) -> None:
    """Ask two SMEs and one Responsible-AI reviewer about splits."""
    wanted = Requirement("train", project, digest, "", {"sme": sme, "rai": 1}, PEOPLE)
    requests.open_requests(ledger, wanted, asset="dataset_sign_off", summary={"rows": 3}, actor="line")


def say(ledger: Ledger, by: str, decision: str = "approve") -> None:
    review = next(r for r in requests.reviews(ledger) if by in r.who)
    requests.decide(ledger, review.id, decision=decision, comment="looked", by=by)


def go(config: Settings, ledger: Ledger, days: float = 0) -> int:
    return tell(config, ledger, {"codes"}, NOW + timedelta(days=days), LOG)


def mails(server: Any) -> list[str]:
    return [m for m in server.got if isinstance(m, str) and m.startswith("Subject")]


def to(messages: list[str]) -> list[str]:
    return sorted(line[4:] for m in messages for line in m.splitlines() if line.startswith("To: "))


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_each_person_asked_is_told_once_by_mail_and_the_channel_by_webhook(
    scheme: str,
    ledger: Ledger,
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    pem = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    hook, mail = serve(Hook, status=200), serve(MailStandIn, tls=tls, implicit=scheme == "smtps")
    config = replace(
        settings.load(),
        notify_email=1,
        smtp_url=f"{scheme}://robot:p%40ss-s3cret@localhost:{mail.port}",
        mail_from="ftaas@example.com",
        notify_webhook=f"http://127.0.0.1:{hook.port}/hook-s3cret",
    )
    assert go(config, ledger) == 0, "nobody is asked"
    ask(ledger)
    opened = {"server": "s", "place": "7", "link": "http://127.0.0.1:8080/projects/7"}
    request = next(e for e in ledger.entries("review_requested") if e.body["role"] == "sme")
    body = {"round": "x", "kind": "sme", "opened": opened, "about": {"request": request.hash}}
    ledger.append("round_opened", DIGEST, body, project="codes", actor="line")
    assert go(config, ledger) == 5
    assert to(mails(mail)) == ["eva@example.com", "rita@example.com", "sam@example.com"]
    assert mail.got[0] == "tls" and "\0robot\0p@ss-s3cret" in mail.got

    (sam,) = [m for m in mails(mail) if "To: sam@example.com" in m]
    review = next(r for r in requests.reviews(ledger) if r.role == "sme")
    for said in (
        "From: ftaas@example.com",
        "codes waits for your SME sign-off",
        f"dataset splits {DIGEST[:12]}",
        review.since,
        "http://127.0.0.1:8080/projects/7",
        f"ftaas review show {review.id}",
    ):
        assert said in sam
    assert [set(m) for m in hook.got] == [{"text"}, {"text"}]
    assert any("sam@example.com or eva@example.com" in m["text"] for m in hook.got)

    assert go(config, ledger) == 0 and go(config, ledger, days=2.9) == 0
    told = ledger.entries("notified", authentic=True)
    assert {tuple(e.body) for e in told} == {("channel", "question", "reminder", "review", "who")}
    assert sorted(p for e in told if e.body["channel"] == "mail" for p in e.body["who"]) == to(mails(mail))
    everything = caplog.text + repr([e.body for e in ledger.entries()]) + "".join(mails(mail))
    assert "s3cret" not in everything and "@" not in caplog.text


def test_a_reminder_goes_to_those_who_have_not_answered_until_nothing_waits(
    ledger: Ledger, serve: Serve
) -> None:
    mail = serve(MailStandIn)
    url = f"smtp://127.0.0.1:{mail.port}"
    config = replace(settings.load(), notify_email=1, smtp_url=url, mail_from="f@example.com", remind_days=3)
    ask(ledger)
    assert go(config, ledger) == 3
    say(ledger, "sam@example.com")
    mail.got.clear()
    assert go(config, ledger, days=3.1) == 2
    assert to(mails(mail)) == ["eva@example.com", "rita@example.com"]
    assert all("still waits" in m and "Reminder 1." in m for m in mails(mail))
    assert [e.body["reminder"] for e in ledger.entries("notified")] == [0, 0, 0, 1, 1]

    ask(ledger, "b" * 64)  # newer content: what was open is superseded and reminds nobody
    mail.got.clear()
    assert go(config, ledger, days=9) == 3
    assert all("b" * 12 in m and "Reminder" not in m for m in mails(mail))
    say(ledger, "rita@example.com")
    say(ledger, "eva@example.com", "reject")
    assert go(config, ledger, days=99) == 0, "decided"
    assert go(replace(config, remind_days=0), ledger, days=99) == 0
    ask(ledger, "c" * 64, project="gone")
    assert go(config, ledger, days=99) == 0, "a project that is gone reminds nobody"


def test_a_clock_that_jumped_neither_floods_nor_silences(ledger: Ledger) -> None:
    ask(ledger)
    waits = notices.waiting(ledger, "codes")

    def due(told: datetime, now: datetime) -> int:
        known = {(w.question, "mail", p): notices.Told(1, told.isoformat()) for w in waits for p in w.who}
        return len(notices.due(waits, notices.Memory(known), ["mail"], 3, now))

    assert due(NOW, NOW + timedelta(days=4000)) == 3, "one each, not one for every third day"
    assert due(NOW + timedelta(days=4000), NOW) == 3, "told by a clock that was ahead"
    assert due(NOW + timedelta(minutes=5), NOW) == 0


def test_rows_that_wait_are_told_to_those_who_have_not_answered_all(ledger: Ledger) -> None:
    def note(entry: str, round_: str, digest: str = DIGEST, **more: Any) -> None:
        opened = {"server": "inbox", "place": round_, "link": f"ftaas review show {round_}"}
        who = ["sam@example.com", "eva@example.com"]
        body = {"round": round_, "who": who, "opened": opened, "about": {}, **more}
        ledger.append(entry, digest, body, project="codes", actor="line")

    def waits() -> list[str]:
        return [w.id for w in notices.waiting(ledger, "codes")]

    note("round_opened", "one", kind="rows")
    note("round_opened", "pairs", kind="preference")
    note("round_superseded", "one")
    note("round_opened", "two", "b" * 64, kind="rows")
    assert waits() == ["pairs", "two"]
    half = notices.waiting(ledger, "codes", {"two": {"Sam@example.com"}})
    assert [w.who for w in half if w.id == "two"] == [("eva@example.com",)]
    assert not any(w.link for w in half), "a command is no link"
    note("round_closed", "two", "b" * 64)
    assert waits() == ["pairs"]
    note("round_reopened", "two", "b" * 64)
    assert waits() == ["pairs", "two"]


def test_who_is_asked_again_is_told_again_at_once(ledger: Ledger, serve: Serve) -> None:
    mail = serve(MailStandIn)
    url = f"smtp://127.0.0.1:{mail.port}"
    config = replace(settings.load(), notify_email=1, smtp_url=url, mail_from="f@example.com")
    ask(ledger, sme=1)
    assert go(config, ledger) == 3
    say(ledger, "rita@example.com")
    (given,) = ledger.entries("decision")
    body = {"decision": given.hash, "role": "rai", "environment": "", "why": "the answer was edited"}
    ledger.append("decision_revoked", DIGEST, body, project="codes", actor="platform")
    mail.got.clear()
    ask(ledger, sme=1)
    assert go(config, ledger) == 1 and to(mails(mail)) == ["rita@example.com"]
    assert "Reminder" not in mails(mail)[0]


def test_a_broken_way_is_tried_again_later_and_stops_neither_the_other_nor_the_sensor(
    ledger: Ledger,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)
    hook, mail = serve(Hook, status=500), serve(MailStandIn, unknown=["eva@example.com"])
    monkeypatch.setenv("FTAAS_NOTIFY_EMAIL", "1")
    monkeypatch.setenv("FTAAS_MAIL_FROM", "f@example.com")
    monkeypatch.setenv("FTAAS_SMTP_URL", f"smtp://127.0.0.1:{mail.port}")
    monkeypatch.setenv("FTAAS_NOTIFY_WEBHOOK", f"http://127.0.0.1:{hook.port}/hook-s3cret")
    config = settings.load()
    ask(ledger)
    assert go(config, ledger) == 2
    assert to(mails(mail)) == ["rita@example.com", "sam@example.com"], "one address that is wrong stops none"
    assert len(hook.got) == 1, "a way that failed is not tried again in the same tick"
    failing = dict(Backoff(config.home))
    assert set(failing) == {"webhook", "mail to eva@example.com"}
    assert "HTTP 500" in failing["webhook"].why and "FTAAS_NOTIFY_WEBHOOK" in failing["webhook"].why

    assert go(config, ledger) == 0 and len(hook.got) == 1, "too early"
    hook.status = 200
    assert go(config, ledger, days=0.1) == 2 and len(hook.got) == 3
    assert set(dict(Backoff(config.home))) == {"mail to eva@example.com"}
    assert go(config, ledger, days=-1) == 0, "a clock that was ahead blocks nothing for longer than an hour"
    assert dict(Backoff(config.home))["mail to eva@example.com"].times == 3

    # Whatever the settings say, the sensor goes on and tells no secret.
    ask(ledger, "b" * 64)
    for webhook, smtp in (
        ("http://127.0.0.1:1/hook-s3cret", "smtp://robot:s3cret@127.0.0.1:1"),
        ("http://127.0.0.1:port-s3cret/", "smtp://robot:half/s3cret@127.0.0.1"),
        ("", "ftp://s3cret"),
        ("", ""),
    ):
        (config.home / "outbox.json").write_text("{", "utf-8")
        monkeypatch.setenv("FTAAS_NOTIFY_WEBHOOK", webhook)
        monkeypatch.setenv("FTAAS_SMTP_URL", smtp)
        with dg.DagsterInstance.ephemeral() as instance, dg.build_sensor_context(instance) as context:
            tick = notices_sensor([]).evaluate_tick(context)
        assert not tick.run_requests
        tell(settings.load(), ledger, {"codes"}, NOW, LOG)
    shown = capfd.readouterr()
    assert "s3cret" not in caplog.text + shown.out + shown.err + repr(dict(Backoff(config.home)))


def test_killed_between_sending_and_remembering_it_is_sent_again(
    ledger: Ledger, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail = serve(MailStandIn)
    url = f"smtp://127.0.0.1:{mail.port}"
    config = replace(settings.load(), notify_email=1, smtp_url=url, mail_from="f@example.com")
    ask(ledger, sme=1)
    with monkeypatch.context() as broken:
        broken.setattr(ledger, "append", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            go(config, ledger)
    assert len(mails(mail)) == 1
    assert go(config, ledger) == 3
    assert len(mails(mail)) == 4 and go(config, ledger) == 0
