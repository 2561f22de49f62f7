"""Promises of switching by rule: who acts, on what, and what the ledger says of it."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from callers import eventually
from rollouts import NEW, OLD, release, tried
from serving_house import CAUSAL, House, approve, random_adapter

from ftaas_pipelines.cli.main import main
from ftaas_pipelines.errors import Refused
from ftaas_pipelines.governance.gates import Requirement
from ftaas_pipelines.governance.ledger import open_ledger
from ftaas_pipelines.projects.rollout import Condition, Rollout
from ftaas_pipelines.serving import answers, asking, deployments
from ftaas_pipelines.serving.desired import Folder, Terms, Trial, Wanted
from ftaas_pipelines.serving.inference_log import Answered, Feedback, InferenceLog
from ftaas_pipelines.serving.rollout import acting, judging, windows
from ftaas_pipelines.serving.rollout.judging import judge
from ftaas_pipelines.serving.rollout.watch import Watch
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import digest_of
from resources.tracking import Tracking
from sensors.champions import champions_sensor

QUESTION = [{"role": "user", "content": "What does fault E42 mean?"}]


# -- acting, without an endpoint ---------------------------------------------------------------------


def answered(digest: str, status: int = 200, **changes: Any) -> Answered:
    row = Answered(
        id=f"chatcmpl-{np.random.default_rng().integers(2**62):032x}",
        at=time.time(),
        environment="staging",
        project="alpha",
        release=digest,
        adapter_digest="",
        base="",
        variant="",
        caller="anonymous",
        kind="chat",
        status=status,
        error="",
        finish_reason="stop",
        prompt_tokens=5,
        completion_tokens=5,
        cost_usd=0.0,
        total_ms=100.0,
        queue_ms=1.0,
        first_token_ms=20.0,
        guard=[],
    )
    return replace(row, **changes)


@pytest.fixture
def quiet(tmp_path: Path) -> tuple[Settings, Folder]:
    """A home in which OLD serves and a failing NEW is tried; no process lives there."""
    settings = Settings(home=tmp_path, policy=tmp_path / "none.yaml")
    folder = Folder(tmp_path, "staging")
    rule = Condition(measure="error_rate", limit=0.2, requests=5)
    trial = Trial(
        release=release(NEW), kind="canary", percent=50, since=time.time(), rollout=Rollout(end_when=[rule])
    )
    with folder.changing() as desired:
        desired.projects["alpha"] = Wanted(release=release(OLD), trial=trial)
    logged(folder, *(answered(NEW, 503) for _ in range(5)), *(answered(OLD) for _ in range(5)))
    return settings, folder


def logged(folder: Folder, *rows: Answered | Feedback) -> None:
    log = InferenceLog(folder.answers)
    log.start()
    for row in rows:
        assert log.put(row)
    log.close()


def test_windows_are_read_from_the_log_with_thumbs_and_without_shadows(
    quiet: tuple[Settings, Folder],
) -> None:
    _, folder = quiet
    seen = {"rule": "secrets", "kind": "jwt", "action": "redact", "count": 1}
    told = answered(NEW, guard=[{**seen, "where": "output"}], unit="abc", variant="b")
    asked = answered(NEW, guard=[{**seen, "where": "input"}])
    words = [
        Feedback(told.id, time.time() + i, "x", t, project="alpha") for i, t in enumerate(("up", "down"))
    ]
    logged(folder, told, asked, answered(NEW, shadow_of=asked.id), answered("", 503), *words)
    traffic = windows.read(folder.answers, "alpha", time.time() - 60)
    assert len(traffic) == 12 and sorted(set(traffic.release)) == [OLD, NEW]
    new = traffic.of(NEW, 0, time.time() + 1)
    assert (sum(new.failed), sum(new.guarded), sum(new.thumb)) == (5, 1, -1)  # the last word counts
    assert set(new.unit) == {"abc", "anonymous"}
    assert len(windows.read(folder.answers, "beta", 0)) == 0


def test_a_trial_is_ended_once_with_what_was_seen(quiet: tuple[Settings, Folder]) -> None:
    settings, folder = quiet
    watch = Watch(settings, folder)
    watch.tick()
    assert folder.desired().projects["alpha"].trial is None
    watch.tick()
    ledger = open_ledger(settings)
    decided, ended = ledger.entries()
    assert (decided.kind, ended.kind) == (acting.DECIDED, "trial_ended")
    assert decided.actor == ended.actor == acting.ACTOR and ended.body["decided"] == decided.hash
    assert decided.body["rule"] == "end_when" and decided.body["findings"][0]["value"] == 1.0
    assert (decided.subject, decided.body["serving"]) == (NEW, OLD) and ledger.verify().ok


def test_without_a_ledger_nothing_is_done_and_that_is_said_once(
    quiet: tuple[Settings, Folder], capsys: pytest.CaptureFixture[str]
) -> None:
    settings, folder = quiet
    away = replace(settings, ledger_url=f"sqlite:///{settings.home}/away/ledger.db")
    watch = Watch(away, folder)
    for _ in range(3):
        watch.tick()
    assert folder.desired().projects["alpha"].trial is not None
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 1 and lines[0]["logger"] == "ftaas.rollout"
    Watch(settings, folder).tick()
    assert folder.desired().projects["alpha"].trial is None


def test_what_a_person_changed_meanwhile_stands(quiet: tuple[Settings, Folder]) -> None:
    settings, folder = quiet
    judged = folder.desired().projects["alpha"]
    verdict = judge(judged, windows.read(folder.answers, "alpha", 0), time.time() + 1)
    assert verdict.action == "end_trial"
    deployments.pin(settings, "staging", "alpha")
    with pytest.raises(Refused, match="was changed since it was judged"):
        acting.act(settings, "staging", open_ledger(settings), judged, verdict)
    assert folder.desired().projects["alpha"].trial == judged.trial


def test_who_is_killed_in_between_has_it_written_down_by_the_next(quiet: tuple[Settings, Folder]) -> None:
    settings, folder = quiet
    judged, ledger = folder.desired().projects["alpha"], open_ledger(settings)
    verdict = judge(judged, windows.read(folder.answers, "alpha", 0), time.time() + 1)
    acting.act(settings, "staging", ledger, judged, verdict)  # and no `finish`
    for _ in range(2):
        watch = Watch(settings, folder)
        assert not watch.over  # before that is looked after it does not go
        watch.tick()
    assert watch.over and [e.kind for e in ledger.entries()] == [acting.DECIDED, "trial_ended"]


def test_a_promotion_in_production_moves_the_champion(tmp_path: Path) -> None:
    ledger = open_ledger(Settings(home=tmp_path))
    was = tried(promote_after=[{"measure": "error_rate", "limit": 0.1}])
    verdict = judging.Verdict("promote", "all is well", NEW, OLD, "promote_after")
    body = acting.decision("production", verdict, was, "http://127.0.0.1:8000")
    decided = ledger.append(acting.DECIDED, NEW, body, project="alpha", actor=acting.ACTOR)
    assert acting.finish(ledger, decided, was) == ""  # it is not done yet
    assert acting.finish(ledger, decided, Wanted(release=release(NEW))).startswith("serves")
    assert acting.finish(ledger, decided, Wanted(release=release(NEW))) == ""
    written = ledger.entries(after=decided.seq)
    assert [e.kind for e in written] == ["deployment", "trial_ended", "champion"]
    assert [e.subject for e in written] == [NEW] * 3 and written[1].body["promoted"]
    assert written[0].body["url"] == "http://127.0.0.1:8000"  # what a command writes is there too


def test_leave_is_asked_for_anew_and_fails_closed(tmp_path: Path) -> None:
    """The approval, the sign-off behind it and the policy must be those under which it was let in."""
    settings, one = Settings(home=tmp_path, policy=Path("policy/platform.yaml")), release(NEW)
    ledger = open_ledger(settings, acting.current_policy(settings.policy))
    with pytest.raises(Refused, match="is not in the ledger"):
        acting.require_leave(settings, ledger, one, "staging")
    approve(ledger, one, ["staging"])
    acting.require_leave(settings, ledger, one, "staging")
    grant = ledger.entries("grant")[-1]
    assert grant.actor == acting.ACTOR and grant.body["asset"] == "deployment_staging"
    with pytest.raises(Refused, match="nobody was given leave"):
        acting.require_leave(settings, ledger, one, "production")

    body = {**ledger.entries("release")[-1].body, "splits": "e" * 64}
    ledger.append("release", NEW, body, project="alpha", actor="test")
    acting.require_leave(settings, ledger, one, "staging")
    asked = Requirement("train", "alpha", "e" * 64, "", {"sme": 1}, {"sme": ["anna@acme.org"]})
    train = {"gate": "train", "environment": "", "asset": "adapter_lora", "requirement": asdict(asked)}
    ledger.append("grant", "e" * 64, train, project="alpha", actor="test")
    with pytest.raises(Refused, match="is not signed"):
        acting.require_leave(settings, ledger, one, "staging")

    other = Settings(home=tmp_path / "other", policy=settings.policy)
    older = open_ledger(other, "an older policy")
    approve(older, one, ["staging"])
    with pytest.raises(Refused, match="the platform policy changed"):
        acting.require_leave(other, older, one, "staging")


# -- the registry ----------------------------------------------------------------------------------------


def test_mlflows_champion_follows_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, ...]] = []
    monkeypatch.setenv("FTAAS_HOME", str(tmp_path))
    monkeypatch.setattr(Tracking, "champion", lambda _, uri, *what: told.append(what))
    ledger = open_ledger(Settings(home=tmp_path))
    for digest in (OLD, NEW):
        ledger.append("champion", digest, {"adapter": "d" * 64}, project="alpha", actor=acting.ACTOR)
    context = dg.build_sensor_context(resources={"tracking": Tracking()})
    for _ in range(2):
        champions_sensor(context)
    assert told == [("alpha", NEW)]  # the newest, once


# -- the endpoint ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House.at(tmp_path_factory.mktemp("home"), rollout_every_s=1, adapter_mib=2)
    made.add("alpha", CAUSAL, *(random_adapter(made.store, CAUSAL, seed, rank=16) for seed in (1, 2, 3)))
    # Its adapter leaves no room for the others, which lie beside each other.
    large = random_adapter(made.store, CAUSAL, 4, rank=64)
    facts = {"project": "beta", "release": digest_of("beta"), "adapter": large.digest}
    beta = made.releases["alpha"][0].model_copy(update={**facts, "adapter_path": str(large.path)})
    approve(made.ledger, beta)
    try:
        made.up(made.releases["alpha"][0])
        made.up(beta)
        yield made
    finally:
        made.close()


class Asking:
    """Two callers that ask on and on, and what became of it: [(release, status)]."""

    def __init__(self, house: House):
        self.house, self.over = house, threading.Event()
        self.seen: list[tuple[str, int]] = []
        self.threads = [threading.Thread(target=self._ask, args=(f"user {i}",)) for i in range(2)]

    def _ask(self, user: str) -> None:
        body = {"model": "alpha", "messages": QUESTION, "max_tokens": 4, "user": user}
        while not self.over.is_set():
            got = self.house.http.post("/v1/chat/completions", json=body)
            self.seen.append((got.json().get("release", ""), got.status_code))
            time.sleep(0.03)

    def __enter__(self) -> "Asking":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()


def stands(house: House) -> Wanted:
    return house.folder.desired().projects["alpha"]


def kinds(house: House, after: int) -> list[str]:
    return [e.kind for e in house.ledger.entries(project="alpha", after=after)]


def newest(house: House) -> int:
    return house.ledger.entries(limit=1)[-1].seq


def try_(house: House, number: int, percent: float = 50, **rules: Any) -> None:
    rollout = Rollout.model_validate(rules)
    trial = Trial(release=house.releases["alpha"][number], kind="canary", percent=percent, rollout=rollout)
    deployments.try_beside(house.settings, house.environment, trial)


def test_a_canary_that_fails_is_ended_by_rule(house: House) -> None:
    """Its adapter's bytes change while it serves: it is verified again, and refused, when it comes back."""
    bad, start = house.releases["alpha"][1], newest(house)
    weights = Path(bad.adapter_path) / "adapter_model.safetensors"
    sound = weights.read_bytes()
    rule = {"measure": "error_rate", "limit": 0.3, "requests": 8, "minutes": 0.5}
    try_(house, 1, end_when=[rule])
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    try:
        asking.ask(house.settings, house.environment, "beta", "make room")
        with Asking(house) as callers:
            eventually(lambda: stands(house).trial is None)
            switched = len(callers.seen)
            time.sleep(1.5)
        assert {s for r, s in callers.seen if r == house.releases["alpha"][0].release} == {200}
        # Who was on the way when it ended may have met it once more.
        assert {s for _, s in callers.seen[switched + 4 :]} == {200}
    finally:
        weights.write_bytes(sound)
    eventually(lambda: len(kinds(house, start)) == 2)
    decided, ended = house.ledger.entries(project="alpha", after=start)
    assert [decided.kind, ended.kind] == [acting.DECIDED, "trial_ended"]
    assert decided.body["findings"][0]["requests"] >= 8 and ended.subject == bad.release
    assert not stands(house).pinned and stands(house).release == house.releases["alpha"][0]


def test_a_canary_that_does_well_is_promoted_and_nobody_notices(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _, third = house.releases["alpha"]
    start = newest(house)
    rules = [
        {"measure": "error_rate", "limit": 0.0, "requests": 10, "minutes": 0.05},
        {"measure": "p99_ms", "limit": 60_000, "requests": 10, "minutes": 0.05},
    ]
    with Asking(house) as callers:
        try_(house, 2, promote_after=rules)
        eventually(lambda: stands(house).release == third)
        eventually(lambda: "trial_ended" in kinds(house, start))
        time.sleep(0.5)
    assert {s for _, s in callers.seen} == {200}
    assert {r for r, _ in callers.seen} == {first.release, third.release}
    assert kinds(house, start) == ["grant", acting.DECIDED, "deployment", "trial_ended"]
    assert {e.actor for e in house.ledger.entries(project="alpha", after=start)} == {acting.ACTOR}
    assert stands(house).history[-1] == first and stands(house).trial is None

    for name, value in house.settings.environ().items():
        monkeypatch.setenv(name, value)
    house.ledger.append(
        "trial_started",
        third.release,
        {"environment": "staging", "kind": "canary"},
        project="alpha",
        actor="t",
    )
    words = ["deployment", "compare", "alpha", "--env", "staging"]
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["release"] == third.release and not report["running"]
    assert main(words) == 0 and "canary of" in capsys.readouterr().out
    assert main(["deployment", "compare", "beta", "--env", "staging"]) == 2
    assert "no canary or A/B test was run" in capsys.readouterr().err


def test_an_ab_test_keeps_whose_requests_belong_together_and_no_names(house: House) -> None:
    other = house.releases["alpha"][1]
    house.up(house.releases["alpha"][0])
    deployments.try_beside(house.settings, house.environment, Trial(release=other, kind="ab", percent=50))
    users, begun = [f"somebody-{i}" for i in range(8)], time.time()
    asked: dict[str, str] = {}
    for user in users * 2:
        body = {"model": "alpha", "messages": QUESTION, "max_tokens": 1, "user": user}
        asked[house.http.post("/v1/chat/completions", json=body).json()["id"]] = user

    def rows() -> list[dict[str, Any]]:
        columns = ("id", "unit", "variant")
        return [r for r in answers.scan(house.folder.answers, begun, columns=columns) if r["id"] in asked]

    eventually(lambda: len(rows()) == len(asked))
    units = {(asked[r["id"]], r["unit"], r["variant"]) for r in rows()}
    assert len(units) == len(users) == len({unit for _, unit, _ in units})  # a user, a name, a variant
    assert {variant for _, _, variant in units} <= {"a", "b"}
    kept = b"".join(f.read_bytes() for f in house.folder.answers.rglob("*") if f.is_file())
    assert b"somebody" not in kept
    first = stands(house).trial
    deployments.end_trial(house.settings, house.environment, "alpha")
    assert first and first.salt not in (house.folder.path / "desired.json").read_text("utf-8")


def test_a_release_whose_leave_is_gone_is_not_promoted_and_that_is_said_once(house: House) -> None:
    second, start = house.releases["alpha"][1], newest(house)
    before = stands(house).release
    rule = {"measure": "error_rate", "limit": 1.0, "requests": 3, "minutes": 0.15}
    try_(house, 1, promote_after=[rule])
    body = {"environment": "staging", "why": ["the sign-off was withdrawn"]}
    house.ledger.append("deployment_stopped", second.release, body, project="alpha", actor="platform")
    with Asking(house):
        eventually(lambda: acting.REFUSED in kinds(house, start))
        time.sleep(3)
        assert kinds(house, start).count(acting.REFUSED) == 1 and stands(house).release == before

        def listed() -> bool:
            rollout = deployments.deployment(house.settings, house.environment, "alpha").as_dict()["rollout"]
            return rollout["action"] == "promote" and "the sign-off was withdrawn" in rollout["refused"]

        eventually(listed)  # a busy machine may have too few answers in the window for a while
        approve(house.ledger, second, ["staging"])  # and it was approved anew
        eventually(lambda: "deployment" in kinds(house, start))
        assert stands(house).release == second


def test_a_bad_deployment_is_rolled_back_and_pinned_and_left_alone_until_unpin(house: House) -> None:
    first, second, third = house.releases["alpha"]
    settings, env = house.settings, house.environment
    for one in (first, second):
        house.up(one)
    start = newest(house)
    slow = Rollout(rollback_when=[Condition(measure="p99_ms", limit=0.01, requests=5, minutes=0.5)])
    with Asking(house) as callers:
        deployments.up(settings, env, third, terms=Terms(rollout=slow))
        eventually(lambda: stands(house).release == second)
        assert stands(house).pinned
        with pytest.raises(Refused, match="pinned"):
            deployments.up(settings, env, third)
        time.sleep(4)  # it is as slow, and left alone
        assert stands(house).release == second
        eventually(lambda: "pinned" in deployments.deployment(settings, env, "alpha").rollout["reason"])
    assert {s for _, s in callers.seen} == {200}
    assert kinds(house, start) == [acting.DECIDED, "rollback"]
    decided, back = house.ledger.entries(project="alpha", after=start)
    assert (decided.subject, decided.body["other"]) == (third.release, second.release)
    assert decided.body["rule"] == "rollback_when" and decided.body["findings"][0]["limit"] == 0.01
    assert back.subject == second.release and back.body["decided"] == decided.hash

    deployments.unpin(settings, env, "alpha")
    time.sleep(3)  # what was before the unpin is not held against it
    assert stands(house).release == second and not stands(house).pinned
    with Asking(house):
        eventually(lambda: stands(house).release == first)
    assert stands(house).pinned and house.ledger.verify().ok
