"""Promises of rules: what is judged of which requests, and how surely. No endpoint is asked."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from rollouts import NEW, NOW, OLD, release, tried

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects import yaml_lines
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.projects.rollout import Condition, Rollout
from ftaas_pipelines.serving.desired import Terms, Wanted
from ftaas_pipelines.serving.rollout import comparison, judging, sequential, windows
from ftaas_pipelines.serving.rollout.comparison import Tried
from ftaas_pipelines.serving.rollout.judging import judge
from ftaas_pipelines.serving.rollout.windows import Traffic

OLDER = "c" * 64


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
