"""Promises of switching by rule: what is judged, how surely, who acts, and what the ledger says of it."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from serving_house import CAUSAL, House, approve, random_adapter

from ftaas_pipelines.cli.main import main
from ftaas_pipelines.errors import InputInvalid, Refused
from ftaas_pipelines.governance.gates import Requirement
from ftaas_pipelines.governance.ledger import open_ledger
from ftaas_pipelines.projects import yaml_lines
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.projects.rollout import Condition, Rollout
from ftaas_pipelines.serving import answers, deployments
from ftaas_pipelines.serving.desired import Folder, ReleaseToServe, Terms, Trial, Wanted
from ftaas_pipelines.serving.inference_log import Answered, Feedback, InferenceLog
from ftaas_pipelines.serving.rollout import acting, comparison, judging, sequential, windows
from ftaas_pipelines.serving.rollout.comparison import Tried
from ftaas_pipelines.serving.rollout.judging import judge
from ftaas_pipelines.serving.rollout.watch import Watch
from ftaas_pipelines.serving.rollout.windows import Traffic
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import digest_of
from resources.tracking import Tracking
from sensors.champions import champions_sensor

NOW = 1_800_000_000.0
OLD, NEW, OLDER = "a" * 64, "b" * 64, "c" * 64
QUESTION = [{"role": "user", "content": "What does fault E42 mean?"}]


def release(digest: str, project: str = "alpha") -> ReleaseToServe:
    facts = dict.fromkeys(("bento", "bento_path", "adapter", "adapter_path", "base", "base_path"), "d" * 64)
    return ReleaseToServe(
        project=project, release=digest, runtime="r", family="causal", max_new_tokens=8, **facts
    )


def rows(digest: str, count: int, ago: float = 60.0, **changes: Any) -> Traffic:
    """So many requests of a release, all good unless told, `ago` seconds before NOW."""
    values: dict[str, Any] = {
        "at": NOW - ago,
        "release": digest,
        "variant": "",
        "status": 200,
        "tokens": 10.0,
        "total_ms": 100.0,
        "first_token_ms": 20.0,
        "guarded": False,
        "thumb": 0,
        "unit": "caller",
        **changes,
    }
    kinds = {"release": object, "variant": object, "unit": object}
    return Traffic(
        **{k: np.array(np.broadcast_to(np.array(v, kinds.get(k)), count)) for k, v in values.items()}
    )


def mixed(digest: str, count: int, bad: int, ago: float = 60.0, **how: Any) -> Traffic:
    """The first `bad` of them fail, or are as `how` says."""
    how = how or {"status": 500}
    return windows.together([rows(digest, bad, ago, **how), rows(digest, count - bad, ago)])


def tried(kind: Any = "canary", since: float = 600.0, **rules: Any) -> Wanted:
    """OLD serves since long, NEW is tried since so many seconds."""
    rollout = Rollout.model_validate(rules)
    trial = Trial(release=release(NEW), kind=kind, percent=50, since=NOW - since, rollout=rollout)
    return Wanted(release=release(OLD), trial=trial, since=NOW - 86_400 * 9)


def served(since: float = 600.0, pinned: bool = False, history: bool = True, **rules: Any) -> Wanted:
    """NEW serves since so many seconds, OLD did before."""
    terms = Terms(rollout=Rollout.model_validate(rules))
    before = [release(OLD)] if history else []
    return Wanted(release=release(NEW), history=before, terms=terms, since=NOW - since, pinned=pinned)


def said(wanted: Wanted, *traffic: Traffic, now: float = NOW) -> judging.Verdict:
    return judge(wanted, windows.together([windows.none(), *traffic]), now)


# -- judging: a pure function ------------------------------------------------------------------------


def test_a_limit_ends_a_trial_above_it_and_not_at_it() -> None:
    wanted = tried(end_when=[{"measure": "error_rate", "limit": 0.1, "requests": 50}])
    assert said(wanted, mixed(NEW, 50, 5)).action == ""
    found = said(wanted, mixed(NEW, 50, 6), mixed(OLD, 50, 0))
    assert (found.action, found.rule, found.subject, found.other) == ("end_trial", "end_when", NEW, OLD)
    assert found.findings[0].value == 0.12 and "error_rate 0.12 over 50" in found.reason
    # What serves may fail as it likes: that is no word on what is tried.
    assert said(wanted, mixed(NEW, 50, 0), mixed(OLD, 50, 50)).action == ""


def test_too_few_requests_say_nothing() -> None:
    wanted = tried(end_when=[{"measure": "error_rate", "limit": 0.1, "requests": 50}])
    found = said(wanted, mixed(NEW, 49, 49))
    assert found.action == "" and found.findings[0].true is None and "too few" in found.reason
    feedback = tried(end_when=[{"measure": "feedback", "limit": 0.3, "requests": 10}])
    assert said(feedback, rows(NEW, 500), rows(NEW, 9, thumb=-1)).action == ""
    assert said(feedback, rows(NEW, 500), rows(NEW, 10, thumb=-1)).action == "end_trial"


def test_what_callers_do_wrong_is_not_our_error_and_who_waited_in_vain_did_wait() -> None:
    wanted = tried(end_when=[{"measure": "error_rate", "limit": 0.0, "requests": 1}])
    assert said(wanted, rows(NEW, 50), rows(NEW, 50, status=400), rows(NEW, 50, status=429)).action == ""
    assert said(wanted, rows(NEW, 50, status=499)).findings[0].requests == 0
    slow = tried(end_when=[{"measure": "p99_ms", "limit": 5000, "requests": 50}])
    assert said(slow, rows(NEW, 98), rows(NEW, 2, status=499, total_ms=30_000.0)).action == "end_trial"


def test_a_window_has_two_edges_and_begins_no_earlier_than_the_switch() -> None:
    rule = {"measure": "error_rate", "limit": 0.5, "minutes": 5, "requests": 10}
    wanted = tried(since=600, end_when=[rule])
    assert said(wanted, mixed(NEW, 10, 10, ago=300)).action == "end_trial"
    assert said(wanted, mixed(NEW, 10, 10, ago=300.5)).action == ""
    assert said(wanted, mixed(NEW, 10, 10, ago=0)).action == ""  # until now, not with it
    young = tried(since=100, end_when=[rule])
    assert said(young, mixed(NEW, 10, 10, ago=101)).action == ""  # of an earlier trial of the same release
    assert said(young, mixed(NEW, 10, 10, ago=100)).action == "end_trial"
    back = {"rollback_when": [rule]}
    assert said(served(since=100, **back), mixed(NEW, 10, 10, ago=200)).action == ""
    assert said(served(since=250, **back), mixed(NEW, 10, 10, ago=200)).action == "rollback"
    assert judging.begins(young, NOW) == NOW - 300


def test_a_pinned_project_is_left_alone() -> None:
    rule = {"measure": "error_rate", "limit": 0.1, "requests": 10}
    bad = mixed(NEW, 50, 50)
    assert said(served(rollback_when=[rule]), bad).action == "rollback"
    found = said(served(rollback_when=[rule], pinned=True), bad)
    assert found.action == "" and "pinned" in found.reason
    trial = tried(end_when=[rule]).model_copy(update={"pinned": True})
    assert said(trial, bad).action == ""
    # An unpin begins anew: what was before is held against nobody, and nothing is promoted for it.
    unpinned = tried(end_when=[rule]).model_copy(update={"since": NOW - 30})
    assert said(unpinned, bad).action == "" and said(unpinned, mixed(NEW, 50, 50, ago=20)).action
    good = {"promote_after": [{**rule, "minutes": 5}]}
    fine = mixed(NEW, 50, 0, ago=20)
    assert said(tried(**good), fine).action == "promote"
    assert said(tried(**good).model_copy(update={"since": NOW - 30}), fine).action == ""


def test_a_rollback_needs_something_to_go_back_to_and_a_deployment_to_blame() -> None:
    rule = {"measure": "guard", "limit": 0.2, "requests": 10}
    bad = mixed(NEW, 50, 20, guarded=True)
    found = said(served(rollback_when=[rule]), bad)
    assert (found.action, found.subject, found.other) == ("rollback", NEW, OLD)
    alone = said(served(rollback_when=[rule], history=False), bad)
    assert alone.action == "" and "nothing was served before" in alone.reason
    late = served(since=7201, rollback_when=[rule], rollback_within_hours=2)
    assert said(late, bad).action == ""


def test_a_margin_asks_the_interval_and_not_the_figure() -> None:
    worse = tried(end_when=[{"measure": "error_rate", "margin": 0.02, "requests": 50}])
    unsure = said(worse, mixed(NEW, 60, 6), mixed(OLD, 60, 1))  # 8 points more, of few
    assert unsure.action == "" and unsure.findings[0].true is False
    sure = said(worse, mixed(NEW, 2000, 200), mixed(OLD, 2000, 33))
    assert sure.action == "end_trial" and (sure.findings[0].low or 0) > 0.02
    assert said(worse, mixed(NEW, 2000, 200), mixed(OLD, 49, 0)).action == ""  # nothing to hold it against

    good = {"promote_after": [{"measure": "error_rate", "margin": 0.02, "requests": 50, "minutes": 5}]}
    assert said(tried(**good), mixed(NEW, 60, 0), mixed(OLD, 60, 0)).action == ""
    assert said(tried(**good), mixed(NEW, 6000, 60), mixed(OLD, 6000, 60)).action == "promote"
    slower = tried(end_when=[{"measure": "first_token_ms", "margin": 0.2, "requests": 50}])
    draw = np.random.default_rng(1)
    fast, slow = (m * np.exp(draw.normal(0, 0.3, 500)) for m in (20, 40))
    assert said(slower, rows(NEW, 500, first_token_ms=slow), rows(OLD, 500, first_token_ms=fast)).action
    assert not said(slower, rows(NEW, 500, first_token_ms=fast), rows(OLD, 500, first_token_ms=fast)).action


def test_a_deployment_is_held_against_the_release_before_it() -> None:
    wanted = served(rollback_when=[{"measure": "error_rate", "margin": 0.05, "requests": 50}])
    now = mixed(NEW, 500, 100)
    assert said(wanted, now, mixed(OLD, 500, 5, ago=700)).action == "rollback"
    assert said(wanted, now, mixed(OLD, 500, 100, ago=700)).action == ""
    assert said(wanted, now, mixed(OLDER, 500, 5, ago=700)).action == ""


def test_a_trial_is_promoted_when_all_holds_over_the_whole_time() -> None:
    rules = [
        {"measure": "error_rate", "limit": 0.02, "requests": 50, "minutes": 10},
        {"measure": "feedback", "limit": 0.2, "requests": 10, "minutes": 10},
    ]
    good = mixed(NEW, 100, 1), rows(NEW, 20, thumb=1)
    assert said(tried(promote_after=rules), *good).action == "promote"
    assert "more minutes" in said(tried(since=540, promote_after=rules), *good).reason
    assert said(tried(promote_after=rules), mixed(NEW, 100, 1)).action == ""  # nobody said a word
    assert said(tried(promote_after=rules), mixed(NEW, 100, 9), good[1]).action == ""
    both = tried(promote_after=rules, end_when=[{"measure": "p99_ms", "limit": 50, "requests": 50}])
    assert said(both, *good).action == "end_trial"  # what is bad comes first
    assert said(tried("shadow", promote_after=rules), *good).action == ""


def test_requests_of_one_caller_count_as_one_in_an_ab_test() -> None:
    """Twenty callers of whom one fails always: many requests, no evidence."""
    rule = {"end_when": [{"measure": "error_rate", "margin": 0.0, "requests": 50}]}
    callers = np.array([f"u{i % 25}" for i in range(2000)], object)
    bad = np.where(np.isin(callers, ["u0", "u1"]), 500, 200)
    new, old = rows(NEW, 2000, status=bad, unit=callers), rows(OLD, 2000, unit=callers)
    assert said(tried("canary", **rule), new, old).action == "end_trial"
    assert said(tried("ab", **rule), new, old).action == ""
    few = np.array([f"u{i % 19}" for i in range(2000)], object)
    sure = rows(NEW, 2000, status=500, unit=few), rows(OLD, 2000, unit=few)
    assert said(tried("ab", **rule), *sure).findings[0].true is None


# -- the sequential test -----------------------------------------------------------------------------

PEEKS = 20


def alarms(draw: Callable[[], tuple[Any, Any, Any]], runs: int) -> float:
    """The share of runs in which some of 20 looks shows a difference; draw: (ones, in b, units or None)."""
    found = 0
    for _ in range(runs):
        ones, in_b, units = draw()
        for n in np.linspace(len(ones) // PEEKS, len(ones), PEEKS).astype(int):
            a, b = (
                sequential.share(ones[:n][mask], None if units is None else units[:n][mask])
                for mask in (~in_b[:n], in_b[:n])
            )
            if a is None or b is None or min(a.requests, b.requests) < 50:
                continue
            if units is not None and min(a.units, b.units) < sequential.LEAST_UNITS:
                continue
            seen = sequential.difference(a, b, ratio=False)
            if not seen.low <= 0 <= seen.high:
                found += 1
                break
    return found / runs


def test_looking_often_raises_no_false_alarm() -> None:
    """A against A, looked at 20 times: at most 5% of the runs, and the noise of 300."""
    draw = np.random.default_rng(7)
    for rate, share in ((0.02, 0.1), (0.1, 0.5)):
        assert (
            alarms(lambda r=rate, s=share: (draw.random(3000) < r, draw.random(3000) < s, None), 300) <= 0.07
        )


def test_callers_that_differ_raise_no_false_alarm() -> None:
    """Callers ask as much, and fail as often, as each of them does; whoever counts requests is misled."""
    draw = np.random.default_rng(8)

    def one() -> tuple[Any, Any, Any]:
        rate, activity = draw.beta(0.4, 3.6, 120), draw.pareto(1.5, 120) + 0.2
        unit = draw.choice(120, 3000, p=activity / activity.sum())
        return draw.random(3000) < rate[unit], (draw.random(120) < 0.5)[unit], unit

    assert alarms(one, 200) <= 0.07
    assert alarms(lambda: (*one()[:2], None), 100) > 0.3


def test_a_real_difference_is_found_by_the_size_that_was_asked_for() -> None:
    draw = np.random.default_rng(9)
    a, b = sequential.share(draw.random(1000) < 0.05), sequential.share(draw.random(1000) < 0.1)
    assert a and b
    size = sequential.needed(a, b, ratio=False, effect=0.05)
    assert 500 < size < 3000

    def one() -> tuple[Any, Any, Any]:
        in_b = draw.random(2 * size) < 0.5
        return draw.random(2 * size) < np.where(in_b, 0.1, 0.05), in_b, None

    assert alarms(one, 100) >= 0.75


def test_times_are_compared_as_ratios() -> None:
    draw = np.random.default_rng(10)
    a, b = (m * np.exp(draw.normal(0, 0.8, 4000)) for m in (100, 150))
    for of in (
        lambda v: sequential.quantile(v, 0.99),
        lambda v: sequential.quantile(v, 0.5),
        sequential.mean,
    ):
        one, other = of(a), of(b)
        assert one and other
        seen = sequential.difference(one, other, ratio=True)
        assert 0 < seen.low < 0.5 < seen.high
    assert sequential.quantile(a[:999], 0.99) is None


# -- the contract ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"measure": "error_rate"}, "needs a limit or a margin"),
        ({"measure": "error_rate", "limit": 0.1, "margin": 0.1}, "needs a limit or a margin"),
        ({"measure": "feedback", "limit": 5}, "is a share of requests: from 0 to 1, not 5"),
        ({"measure": "p99_ms", "margin": 0.2}, "needs at least 1000 requests, not 50"),
        ({"measure": "guard", "margin": 0.2, "requests": 10}, "needs at least 50 requests, not 10"),
        ({"measure": "error_rate", "limit": 0.1, "minutes": 0}, "greater than 0"),
        ({"measure": "errors", "limit": 0.1}, "Input should be 'error_rate'"),
        ({"measure": "p99_ms", "limit": 100, "hours": 1}, "Extra inputs"),
    ],
)
def test_a_condition_that_means_nothing_is_refused(condition: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Condition.model_validate(condition)


def test_a_wrong_rule_says_where_it_stands(tmp_path: Path) -> None:
    example = Path("projects/maintenance_assistant/project.yaml").read_text("utf-8")
    rule = "    - {measure: error_rate, limit: 5}"
    text = example.replace("serving: {max_new_tokens: 64}", f"serving:\n  rollout:\n    end_when:\n{rule}")
    file = tmp_path / "project.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputInvalid) as wrong:
        yaml_lines.parse(file, Project)
    (problem,) = wrong.value.problems
    assert problem.where.startswith(f"{file}:{text.splitlines().index(rule) + 1}")
    assert "from 0 to 1, not 5" in problem.what and "schema" in problem.do
    file.write_text(text.replace("limit: 5", "limit: 0.05"), encoding="utf-8")
    project, _ = yaml_lines.parse(file, Project)
    assert project.serving.rollout.end_when[0].limit == 0.05 and not Rollout().on
    (shown,) = re.findall(r"```yaml\n(.*?)```", Path("docs/rollout.md").read_text("utf-8"), re.S)
    assert len(Rollout.model_validate(yaml.safe_load(shown)["serving"]["rollout"]).promote_after) == 3


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


# -- the report --------------------------------------------------------------------------------------


def test_a_report_says_which_is_better_and_how_sure_it_is() -> None:
    draw = np.random.default_rng(11)
    ab = Tried("alpha", "staging", "ab", NEW, 0.0, NOW, True)

    def side(digest: str, variant: str, failing: float) -> Traffic:
        units = np.array([f"{variant}{i}" for i in draw.integers(200, size=3000)], object)
        status = np.where(draw.random(3000) < failing, 500, 200)
        times = 100 * np.exp(draw.normal(0, 0.5, 3000))
        return rows(digest, 3000, variant=variant, unit=units, status=status, total_ms=times)

    report = comparison.compare(ab, windows.together([side(OLD, "a", 0.2), side(NEW, "b", 0.05)]))
    errors = report.rows[0]
    assert report.verdict.startswith("b better") and errors.verdict == "b better"
    assert (errors.a_units, errors.b_requests) == (200, 3000) and (errors.high or 0) < 0
    assert {r.verdict for r in report.rows[1:]} == {"no difference shown yet"}
    assert "feedback" not in [r.measure for r in report.rows] and report.serving == OLD
    few = comparison.compare(ab, windows.together([rows(OLD, 99, variant="a"), rows(NEW, 99, variant="b")]))
    assert few.verdict == "too little is known to compare" and "too few callers" in few.rows[0].verdict


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


def eventually(true: Callable[[], bool], within_s: float = 40.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


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
        deployments.ask(house.settings, house.environment, "beta", "make room")
        with Asking(house) as asking:
            eventually(lambda: stands(house).trial is None)
            switched = len(asking.seen)
            time.sleep(1.5)
        assert {s for r, s in asking.seen if r == house.releases["alpha"][0].release} == {200}
        # Who was on the way when it ended may have met it once more.
        assert {s for _, s in asking.seen[switched + 4 :]} == {200}
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
    with Asking(house) as asking:
        try_(house, 2, promote_after=rules)
        eventually(lambda: stands(house).release == third)
        eventually(lambda: "trial_ended" in kinds(house, start))
        time.sleep(0.5)
    assert {s for _, s in asking.seen} == {200}
    assert {r for r, _ in asking.seen} == {first.release, third.release}
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
    rule = {"measure": "error_rate", "limit": 1.0, "requests": 3, "minutes": 0.05}
    try_(house, 1, promote_after=[rule])
    body = {"environment": "staging", "why": ["the sign-off was withdrawn"]}
    house.ledger.append("deployment_stopped", second.release, body, project="alpha", actor="platform")
    with Asking(house):
        eventually(lambda: acting.REFUSED in kinds(house, start))
        time.sleep(3)
        assert kinds(house, start).count(acting.REFUSED) == 1 and stands(house).release == before
        listed = deployments.deployment(house.settings, house.environment, "alpha").as_dict()["rollout"]
        assert listed["action"] == "promote" and "the sign-off was withdrawn" in listed["refused"]
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
    with Asking(house) as asking:
        deployments.up(settings, env, third, terms=Terms(rollout=slow))
        began = time.monotonic()
        eventually(lambda: stands(house).release == second)
        took = time.monotonic() - began
        assert took < 15 and stands(house).pinned
        with pytest.raises(Refused, match="pinned"):
            deployments.up(settings, env, third)
        time.sleep(4)  # it is as slow, and left alone
        assert stands(house).release == second
        eventually(lambda: "pinned" in deployments.deployment(settings, env, "alpha").rollout["reason"])
    assert {s for _, s in asking.seen} == {200}
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
