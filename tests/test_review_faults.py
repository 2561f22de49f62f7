"""Faults that reviews survive, as the line meets them: nothing signs by accident, nothing is lost, and the
asset says what is wrong and what to do.

Label Studio, Dagster's instance, ledger and store are the real ones. Dataset and splits lie in the store as
their stages would leave them, except where rows are reviewed. What counts as an answer, and what a forger
tries, is in `test_sign_off.py`, `test_forging.py` and `test_row_review.py`.
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from conftest import free_ports, rows
from label_studio import Result, Studio

from assets import reviewing
from assets.line import Line, open_line
from ftaas_pipelines import settings
from ftaas_pipelines.cli.main import main
from ftaas_pipelines.definitions import build
from ftaas_pipelines.errors import Refused
from ftaas_pipelines.governance import gates
from ftaas_pipelines.review import round_log
from ftaas_pipelines.review.sign_offs import requests
from resources.label_studio import people
from resources.label_studio.api import Api

pytestmark = [
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),
    pytest.mark.filterwarnings("ignore::dagster.PreviewWarning"),
    pytest.mark.filterwarnings("ignore:.*context.run.run_id instead:DeprecationWarning"),
]
SAM, EVA, RITA, ALEX = (
    "sam.expert@example.com",
    "eva.english@example.com",
    "rita.responsible@example.com",
    "alex.approver@example.com",
)
CHECKS = {
    "sme": ["rows_reviewed", "answers_right", "difference_expected"],
    "rai": ["personal_data_ok", "toxicity_ok", "licence_ok", "consent_ok", "not_checked_accepted"],
}
ASKING = "dataset_review_request"
Projects = Callable[..., Path]


class Daemon:
    """Ticks of the sensor `decisions` and the runs it asks for, as a daemon would do them."""

    def __init__(self, instance: dg.DagsterInstance):
        self.instance, self.cursor = instance, ""
        self.repository = build(settings.load()).get_repository_def()
        self.said = ""
        self.taken: set[str] = set()

    def tick(self, killed: bool = False) -> Any:
        """One tick; `killed`: before anything of what it found was kept."""
        context = dg.build_sensor_context(self.instance, self.cursor, repository_def=self.repository)
        keep = Keep()
        context.log.addHandler(keep)
        found = self.repository.get_sensor_def("decisions").evaluate_tick(context)
        self.said = "\n".join(keep.said)
        if not killed:
            self.cursor = found.cursor
            for event in found.asset_events:
                self.instance.report_runless_asset_event(event)
        return found

    def look_again(self, swept: float = 0.0) -> Any:
        """A tick in which everything is read again, as it is every ten minutes."""
        remembered = json.loads(self.cursor or "{}")
        self.cursor = json.dumps({**remembered, "swept": dict.fromkeys(remembered["swept"], swept)})
        return self.tick()

    def make(self, asset: str, project: str = "codes") -> tuple[str, Any]:
        """Materialise one asset; what it failed with, empty when it did not, and the run."""
        result = self.repository.get_job("__ASSET_JOB").execute_in_process(
            instance=self.instance,
            asset_selection=[dg.AssetKey([project, asset])],
            raise_on_error=False,
        )
        failed = [e for e in result.all_events if e.is_step_failure]
        errors = [e.step_failure_data.error for e in failed if e.step_failure_data.error]
        return " ".join(e.message + (e.cause.message if e.cause else "") for e in errors), result

    def takes(self, found: Any) -> list[str]:
        """The assets that Dagster would run for these requests: each run key once."""
        new = [r for r in found.run_requests if r.run_key not in self.taken]
        self.taken |= {r.run_key for r in new}
        return [k.path[-1] for r in new for k in r.asset_selection]


class Keep(logging.Handler):
    """What a tick says."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


@pytest.fixture
def studio(label_studio: Studio, home: Path) -> Iterator[Studio]:
    label_studio.attach(home)
    yield label_studio
    assert line().ledger.verify().ok


@contextlib.contextmanager
def out_of_reach(studio: Studio, how: str) -> Iterator[None]:
    """Meanwhile the server is stopped, is not where it should be, or its token is wrong."""
    before = dict(studio.variables)
    if how == "stopped":
        studio.stop()
    elif how == "gone":
        os.environ["FTAAS_LABEL_STUDIO_URL"] = f"http://127.0.0.1:{free_ports(1)[0]}"
    else:
        os.environ["FTAAS_LABEL_STUDIO_TOKEN"] = "0" * 40
    try:
        yield
    finally:
        if how == "stopped":
            studio.start()
        os.environ.update(before)


SAYS = {
    "stopped": "cannot be reached",
    "gone": "cannot be reached",
    "token": "FTAAS_LABEL_STUDIO_TOKEN",
}


def line(name: str = "codes") -> Line:
    return open_line(name, settings.load())


def put_splits(name: str = "codes") -> str:
    """Dataset and splits in the store as the stages would leave them; the splits' digest."""
    for kind, spec_of in (("dataset", Line.dataset_spec), ("splits", Line.splits_spec)):
        now = line(name)
        if now.store.find(spec_of(now).input_digest):
            continue
        with now.store.create(kind, spec_of(now).input_digest) as draft:
            draft.content.update(sources=now.source_digests, kind=kind, counts={"train": 90, "test": 30})
            draft.content.update(dropped={}, findings={}, quality={})
            draft.content.update({"dataset": now.dataset.digest} if now.dataset else {})
    return line(name).training_requirement().digest


def places(name: str = "codes") -> dict[str, str]:
    """Role to where it is asked in Label Studio."""
    rounds = round_log.states(line(name).ledger, name)
    return {r.kind: r.opened.place for r in rounds if r.state == "open"}


def answer(studio: Studio, role: str, decision: str = "approve", name: str = "codes") -> str:
    """The first person who may answers in Label Studio; the annotation."""
    review = next(r for r in requests.reviews(line(name).ledger, project=name) if r.role == role)
    said: Result = {"decision": decision, "checks": CHECKS[role], "comment": "looked at all of it"}
    return studio.user(review.who[0]).annotate(places(name)[role], review.id, said)


def say_in_the_inbox(name: str = "codes") -> None:
    ledger = line(name).ledger
    for review in requests.reviews(ledger, project=name):
        requests.decide(ledger, review.id, decision="approve", comment="looked", by=review.who[0])


def signed(daemon: Daemon, studio: Studio) -> dict[str, str]:
    """Asked and signed in Label Studio, told to Dagster; role to annotation."""
    put_splits()
    assert daemon.make(ASKING)[0] == ""
    given = {role: answer(studio, role) for role in ("sme", "rai")}
    assert told(daemon.tick()) == ["codes"] and holds()
    return given


def holds(name: str = "codes") -> bool:
    return gates.standing(line(name).ledger, line(name).training_requirement()).satisfied


def told(tick: Any) -> list[str]:
    """The projects whose dataset sign-off a tick reports."""
    return [e.asset_key.path[0] for e in tick.asset_events if isinstance(e, dg.AssetMaterialization)]


def shown(tick: Any) -> list[tuple[bool, str, str]]:
    """What a tick says on `still_valid`: whether it holds, how loudly, and why."""
    checks = [e for e in tick.asset_events if isinstance(e, dg.AssetCheckEvaluation)]
    return [(c.passed, c.severity.value, c.description or "") for c in checks]


def count(kind: str, name: str = "codes") -> int:
    return len(line(name).ledger.entries(kind, project=name))


def status(capsys: pytest.CaptureFixture[str], asset: str) -> dict[str, Any]:
    """What `ftaas status` says of an asset."""
    capsys.readouterr()
    assert main(["status", "codes", "--json"]) == 0
    return next(a for a in json.loads(capsys.readouterr().out)["assets"] if a["name"] == asset)


# -- the server is down, or the token wrong, at every step --------------------------------------------


@pytest.mark.parametrize("how", ["gone", "token"])
def test_a_question_that_could_not_be_asked_is_asked_once_when_label_studio_is_back(
    studio: Studio, project_factory: Projects, instance: dg.DagsterInstance, how: str
) -> None:
    project_factory("codes")
    put_splits()
    daemon = Daemon(instance)
    daemon.tick()
    with out_of_reach(studio, how):
        for _ in range(2):
            why, _ = daemon.make(ASKING)
            assert SAYS[how] in why and ("run again" in why or "make dev" in why or "set FTAAS" in why)
        assert count("review_requested") == 2, "asked in the ledger: the inbox could answer"
        assert count("round_opened") == 0
        time.sleep(1)
        tick = daemon.tick()
        assert SAYS[how] in daemon.said and "nothing is lost" in daemon.said
        assert not tick.asset_events and not tick.run_requests
    tick = daemon.tick()
    assert daemon.takes(tick) == [ASKING], "the daemon makes again what failed meanwhile"
    assert daemon.make(ASKING)[0] == "" and daemon.make(ASKING)[0] == ""
    assert daemon.takes(daemon.tick()) == [], "and once"
    assert count("review_requested") == count("round_opened") == 2
    for role, place in places().items():
        title = studio.ask("GET", f"/api/projects/{place}/")["title"]
        assert len(studio.projects(title)) == 1 and len(studio.tasks(place)) == 1, role


def test_a_row_review_that_could_not_be_opened_is_opened_when_label_studio_is_back(
    studio: Studio, project_factory: Projects, instance: dg.DagsterInstance
) -> None:
    project_factory("codes", extra="reviews: {row_sample: 10}\n", data=own_rows())
    assert main(["run", "codes", "--until", "dataset"]) == 0
    daemon = Daemon(instance)
    with out_of_reach(studio, "gone"):
        why, _ = daemon.make("row_review_request")
        assert "cannot be reached" in why and count("round_opened") == 0
        time.sleep(1)
        assert not daemon.tick().run_requests
    assert daemon.takes(daemon.tick()) == ["row_review_request"]
    assert daemon.make("row_review_request")[0] == "" and count("round_opened") == 1
    assert daemon.takes(daemon.tick()) == []


def test_a_tick_that_cannot_look_signs_nothing_and_the_next_brings_everything_in(
    studio: Studio, project_factory: Projects, instance: dg.DagsterInstance
) -> None:
    project_factory("codes")
    project_factory("others")
    put_splits()
    put_splits("others")
    daemon = Daemon(instance)
    assert daemon.make(ASKING)[0] == "" and daemon.make(ASKING, "others")[0] == ""
    daemon.tick()
    answer(studio, "sme")
    answer(studio, "rai")
    for how in ("stopped", "token"):
        with out_of_reach(studio, how):
            for _ in range(2):
                tick = daemon.tick()
                assert not tick.asset_events and not tick.run_requests and not holds()
                assert SAYS[how] in daemon.said and "nothing is lost" in daemon.said
            if how == "token":
                say_in_the_inbox("others")
                assert told(daemon.tick()) == ["others"], "what the ledger holds is told meanwhile"
    assert told(daemon.tick()) == ["codes"] and holds()
    assert count("decision") == 2 and count("decision_revoked") == 0
    assert not daemon.tick().asset_events


@pytest.mark.parametrize("how", ["gone", "token"])
def test_the_gate_stays_shut_while_the_sign_offs_cannot_be_read_again(
    studio: Studio, project_factory: Projects, instance: dg.DagsterInstance, how: str
) -> None:
    project_factory("codes")
    daemon = Daemon(instance)
    signed(daemon, studio)
    with out_of_reach(studio, how):
        why, _ = daemon.make("adapter_lora")
        assert "codes/adapter_lora" in why and SAYS[how] in why and "this gate stays shut" in why
        assert holds() and count("grant") == 0 and count("decision_revoked") == 0
    now = line()
    with now.store.create("adapter", now.adapter_spec(now.project.recipes[0]).input_digest) as draft:
        (draft.path / "beside").mkdir()
        (draft.path / "beside" / "loss.png").write_bytes(b"")
        draft.content.update(steps=1, trainable_parameters=1, experiment=False)
        draft.attestation.update(seconds=1.0, cost_usd=0.0)
    _, result = daemon.make("adapter_lora")
    checks = {c.check_name: c.passed for c in result.get_asset_check_evaluations()}
    assert checks["human_sign_off"] and count("grant") == 1


# -- what somebody deletes ----------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["task", "project", "user"])
def test_what_is_deleted_after_the_sign_off_turns_red_and_is_asked_again(
    studio: Studio,
    project_factory: Projects,
    instance: dg.DagsterInstance,
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    project_factory("codes")
    daemon = Daemon(instance)
    signed(daemon, studio)
    before, alex = places()["sme"], studio.user(ALEX)
    if what == "task":
        alex.delete_task(before, next(r.id for r in reviews() if r.role == "sme"))
    elif what == "project":
        alex.delete_project(before)
    else:
        studio.delete_account(SAM)

    tick = daemon.look_again()
    ((passed, loud, why),) = shown(tick)
    assert (passed, loud) == (False, "ERROR") and f"the one by {SAM} was withdrawn" in why
    assert "`ftaas run codes`" in why, "and what to do"
    assert told(tick) == [] and not holds()
    check = still_valid(daemon)
    assert not check.passed and check.description == why, "the check says the same when it is run"
    assert "was withdrawn" in status(capsys, "dataset_sign_off")["reason"]
    _, run = daemon.make("adapter_lora")
    assert not run.success and count("grant") == 0

    assert daemon.takes(tick) == [ASKING]
    if what == "user":
        failed, _ = daemon.make(ASKING)
        assert f"{SAM}: " in failed and "account in Label Studio is gone" in failed and "adopt" in failed
        daemon.tick()
        assert "account in Label Studio is gone" in daemon.said, "it goes on saying so"
        studio.user(SAM)
        assert main(["review", "people", "--adopt", SAM, "--why", "I made it before their eyes"]) == 0
    assert daemon.make(ASKING)[0] == ""
    daemon.tick()
    assert daemon.takes(daemon.tick()) == [], "once for what became void"
    assert places()["sme"] != before and places().keys() == {"sme", "rai"}
    waits = status(capsys, "dataset_sign_off")
    assert waits["state"] == "waiting" and [w["role"] for w in waits["waiting"]] == ["sme"]
    assert f"/projects/{places()['sme']}/" in waits["waiting"][0]["link"]
    answer(studio, "sme")
    tick = daemon.tick()
    assert told(tick) == ["codes"] and [s[0] for s in shown(tick)] == [True] and holds()


def test_a_row_review_that_is_deleted_is_opened_anew_and_its_verdicts_lead_to_version_b(
    studio: Studio,
    project_factory: Projects,
    instance: dg.DagsterInstance,
    capsys: pytest.CaptureFixture[str],
) -> None:
    project_factory("codes", extra="reviews: {row_sample: 10}\n", data=own_rows())
    assert main(["run", "codes", "--until", ASKING]) == 3
    daemon = Daemon(instance)
    daemon.tick()
    (deleted,) = places().values()
    studio.user(ALEX).delete_project(deleted)
    assert not daemon.tick().run_requests
    (place,) = places().values()
    assert place != deleted
    assert f"/projects/{place}/" in status(capsys, "row_review_request")["waiting"][0]["link"]
    (state,) = round_log.states(line().ledger, "codes")
    _, tasks = round_log.load(line().store, state.entry.body["artifact"])
    assert len(studio.tasks(place)) == len(tasks) == 10, "with every row in it"
    reject: Result = {"verdict": "reject", "reason": ["factually_wrong"]}
    for task in tasks:
        said: Result = reject if task is tasks[0] else {"verdict": "approve"}
        studio.user(SAM).annotate(place, task.key, said)
    before = line().dataset
    (lost,) = daemon.tick(killed=True).run_requests
    assert count("round_closed") == 1 and before
    again = daemon.tick()
    assert [r.run_key for r in again.run_requests] == [lost.run_key], "what was lost is asked for again"
    assert daemon.takes(again) == ["dataset"] and daemon.takes(daemon.tick()) == []
    assert main(["run", "codes", "--until", "dataset"]) == 0
    after = line().dataset
    assert after and after.digest != before.digest and after.content["verdicts"]["reject"] == 1
    assert not daemon.tick().run_requests, "nothing more is due"


# -- the daemon is killed, a clock jumps, time passes -------------------------------------------------


def test_killed_between_the_decision_and_its_event_the_event_is_told_once(
    studio: Studio, project_factory: Projects, instance: dg.DagsterInstance
) -> None:
    project_factory("codes")
    put_splits()
    daemon = Daemon(instance)
    assert daemon.make(ASKING)[0] == ""
    daemon.tick()
    answer(studio, "sme")
    answer(studio, "rai")
    assert told(daemon.tick(killed=True)) == ["codes"] and count("decision") == 2
    assert told(daemon.tick()) == ["codes"], "Dagster was not told: it is told again"
    assert told(daemon.tick()) == [] and count("decision") == 2
    daemon.cursor = json.dumps({"of": "another version"})
    assert told(daemon.tick()) == [], "Dagster itself is asked what it knows"


def test_a_clock_that_jumps_keeps_nothing_from_being_read_again(
    studio: Studio, project_factory: Projects, instance: dg.DagsterInstance
) -> None:
    project_factory("codes", extra="reviews: {sign_off_days: 30}\n")
    daemon = Daemon(instance)
    given, sam = signed(daemon, studio), studio.user(SAM)
    no: Result = {"decision": "reject", "checks": CHECKS["sme"], "comment": "no"}
    ahead, behind = time.time() + 365 * 86400, time.time() - 365 * 86400
    for swept in (ahead, behind):  # when it looked last, its clock was a year ahead, or behind
        assert not shown(daemon.look_again(swept)) and holds(), "nothing ends by it"
    for swept, said in ((ahead, no), (behind, {**no, "decision": "approve"})):
        sam.edit(places()["sme"], given["sme"], said)
        passed = said is not no
        assert [s[0] for s in shown(daemon.look_again(swept))] == [passed] and holds() == passed


def test_while_a_clock_is_wrong_nobody_is_asked_again(
    project_factory: Projects, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    project_factory("codes", extra="reviews: {sign_off_days: 30}\n")
    put_splits()
    daemon = Daemon(instance)
    assert daemon.make(ASKING)[0] == ""
    ahead = (datetime.now(UTC) + timedelta(days=365)).strftime("%Y-%m-%dT%H:%M:%SZ")
    with monkeypatch.context() as clock:
        clock.setattr("ftaas_pipelines.governance.ledger.now", lambda: ahead)
        say_in_the_inbox()
    tick = daemon.tick()
    assert told(tick) == [] and not tick.run_requests and not holds(), "it would be answered in vain"
    assert "dated in the future" in shown(tick)[0][2]
    then = datetime.now(UTC) + timedelta(days=366)
    assert gates.standing(line().ledger, line().training_requirement(), then).satisfied


def test_what_expires_turns_red_by_itself_and_is_asked_again_each_time(
    project_factory: Projects, instance: dg.DagsterInstance
) -> None:
    project_factory("codes", extra=f"reviews: {{sign_off_days: {2.5 / 86400}}}\n")
    put_splits()
    daemon = Daemon(instance)
    assert daemon.make(ASKING)[0] == ""
    assert not shown(daemon.tick()), "what never held is awaited, not lost"
    for asked in (2, 3):
        say_in_the_inbox()
        tick = daemon.tick()
        assert told(tick) == ["codes"] and [s[0] for s in shown(tick)] == [True]
        time.sleep(3.5)
        tick = daemon.tick()
        ((passed, loud, why),) = shown(tick)
        assert (passed, loud) == (False, "ERROR") and "expired on" in why
        assert daemon.takes(tick) == [ASKING] and daemon.takes(daemon.tick()) == []
        assert daemon.make(ASKING)[0] == ""
        assert {r.times for r in reviews()} == {asked}
        assert not daemon.tick().run_requests


# -- one must not keep the others back ----------------------------------------------------------------


def test_an_account_that_is_not_theirs_keeps_nobody_else_from_being_asked(
    studio: Studio, project_factory: Projects, instance: dg.DagsterInstance
) -> None:
    yaml = project_factory("codes")
    yaml.write_text(yaml.read_text("utf-8").replace(SAM, EVA), "utf-8")
    people.sign_up(Api(studio.url, studio.token), EVA, "a-password-of-somebody-else")
    try:
        put_splits()
        daemon = Daemon(instance)
        why, _ = daemon.make(ASKING)
        assert f"{EVA}: " in why and "the platform did not make" in why and "--adopt" in why
        answer(studio, "rai")
        tick = daemon.tick()
        assert "the platform did not make" in daemon.said and "codes" in daemon.said
        assert count("decision") == 1 and not tick.run_requests
        daemon.tick()
        assert "the platform did not make" in daemon.said, "it goes on saying so"
    finally:
        studio.delete_account(EVA)
    tick = daemon.tick()
    assert places().keys() == {"sme", "rai"}, "with an account of their own they are asked"
    assert daemon.takes(tick) == [ASKING], "and Dagster sees it: what comes after waits for that"
    assert daemon.make(ASKING)[0] == "" and daemon.takes(daemon.tick()) == []


def test_an_edit_in_a_round_that_is_over_is_found_where_its_sign_off_still_counts(
    studio: Studio, project_factory: Projects, instance: dg.DagsterInstance
) -> None:
    data = project_factory("codes").parent / "data" / "rows.jsonl"
    daemon = Daemon(instance)
    given = signed(daemon, studio)
    place, whole = places()["sme"], data.read_bytes()
    data.write_bytes(whole + whole[: whole.index(b"\n") + 1])
    put_splits()
    assert daemon.make(ASKING)[0] == ""
    daemon.tick()
    data.write_bytes(whole)
    assert places()["sme"] != place and holds(), "the old content is signed still"
    studio.user(ALEX).edit(place, given["sme"], {"decision": "approve", "comment": "as good as new"})
    tick = daemon.look_again()
    assert not holds() and "in the name of" in shown(tick)[0][2]
    assert daemon.takes(tick) == [ASKING]


# -- the production profile ---------------------------------------------------------------------------


def test_production_has_no_inbox_and_says_what_to_set(
    project_factory: Projects,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    project_factory("codes")
    put_splits()
    assert Daemon(instance).make(ASKING)[0] == ""
    monkeypatch.setenv("FTAAS_PROFILE", "production")
    said = ("--decision", "approve", "--comment", "looked", "--as", SAM)
    assert main(["review", "decide", next(r.id for r in reviews()), *said]) == Refused.exit_code
    assert "no local inbox" in capsys.readouterr().err and count("decision") == 0
    (fault,) = reviewing.sync(line())
    assert "FTAAS_LABEL_STUDIO_URL" in str(fault) and "FTAAS_LABEL_STUDIO_TOKEN" in str(fault)
    daemon = Daemon(instance)
    assert not daemon.tick().asset_events and "FTAAS_LABEL_STUDIO_URL" in daemon.said
    why, _ = daemon.make("adapter_lora")
    assert "FTAAS_LABEL_STUDIO_URL" in why, "and no gate opens"
    data = Path(os.environ["FTAAS_PROJECTS"]) / "codes" / "data" / "rows.jsonl"
    data.write_bytes(data.read_bytes() * 2)
    put_splits()
    why, _ = daemon.make(ASKING)
    assert "FTAAS_LABEL_STUDIO_URL" in why


def reviews() -> list[requests.Review]:
    return requests.reviews(line().ledger, project="codes", only_open=False)


def still_valid(daemon: Daemon) -> Any:
    """The check on the sign-off, run by itself."""
    wanted = dg.AssetCheckKey(dg.AssetKey(["codes", "dataset_sign_off"]), "still_valid")
    checks = [c for c in build(settings.load()).asset_checks or [] if isinstance(c, dg.AssetChecksDefinition)]
    return next(c for c in checks if wanted in c.check_keys)()


def own_rows() -> list[dict[str, str]]:
    """Rows of this test alone: the server outlives it, and the same rows are the same round."""
    return [{**row, "input": f"{row['input']} {os.environ['FTAAS_HOME']}"} for row in rows(60)]
