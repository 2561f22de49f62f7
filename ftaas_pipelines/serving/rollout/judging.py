"""The rules of a project held against what its releases did: what follows, and why. Pure.

A limit is held against the measure itself; a margin against the whole of an interval that holds at every
look (`sequential.py`), so that a rule may be asked every ten seconds. Of several rules that end something
each must be the surer, so that all of them together are wrong in one of twenty trials at most.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ftaas_pipelines.projects.rollout import Condition
from ftaas_pipelines.serving.desired import Trial, Wanted
from ftaas_pipelines.serving.rollout import sequential, windows
from ftaas_pipelines.serving.rollout.sequential import LEVEL, Difference
from ftaas_pipelines.serving.rollout.windows import Traffic

Action = Literal["", "end_trial", "promote", "rollback"]


@dataclass(frozen=True)
class Finding:
    """One condition held against a window.

    Attributes:
        true: for `end_when` and `rollback_when`, that it is so bad; for `promote_after`, that it is good
            enough. None: too little is known.
        requests: that it is about; of the other release, `other_requests`.
        value: of the release that is judged.
        low, high: how much worse than the other, where that is asked.
        minutes: from the start of the window to now.
    """

    measure: str
    true: bool | None
    requests: int
    minutes: float
    limit: float | None = None
    margin: float | None = None
    value: float | None = None
    other: float | None = None
    other_requests: int = 0
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For the ledger: what is not there is left out, figures to six places."""
        found = {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}
        return {k: v for k, v in found.items() if v is not None}

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.measure}: {self.requests} requests, too few"
        about = f"{self.measure} {self.value:.4g} over {self.requests} requests"
        if self.limit is not None:
            return f"{about} (limit {self.limit:g})"
        if self.low is None or self.high is None or self.other is None:
            return f"{about} (too little to hold it against: {self.other_requests} requests)"
        return f"{about} ({self.low:+.3g} to {self.high:+.3g} on {self.other:.4g}, margin {self.margin:g})"


@dataclass(frozen=True)
class Verdict:
    """What a project's rules say now.

    Attributes:
        action: what follows; empty: nothing.
        subject: digest of the release that is judged.
        other: of the one beside or before it; empty where there is none.
        rule: the list of the section that said so.
        findings: all that was looked at.
    """

    action: Action
    reason: str
    subject: str = ""
    other: str = ""
    rule: str = ""
    findings: tuple[Finding, ...] = ()


def begins(wanted: Wanted, now: float) -> float:
    """How far back the log must be read to judge a project, UTC s."""
    rules = [*wanted.terms.rollout.rollback_when]
    if wanted.trial:
        rules += [*wanted.trial.rollout.promote_after, *wanted.trial.rollout.end_when]
    longest = max((60 * c.minutes for c in rules), default=0.0)
    # What is looked at begins at the switch; what it is compared with may lie as long before it.
    before = any(c.margin is not None for c in wanted.terms.rollout.rollback_when)
    return max(now - longest, wanted.since) if not before else max(now - longest, wanted.since) - longest


def watched(wanted: Wanted) -> bool:
    """Whether some rule speaks of it as it stands."""
    trial = wanted.trial
    rules = trial.rollout if trial and trial.kind != "shadow" else None
    return bool(wanted.terms.rollout.rollback_when or (rules and (rules.end_when or rules.promote_after)))


def settled(wanted: Wanted, now: float) -> bool:
    """Whether no request could change what is said of it: the log need not be read."""
    trial, hours = wanted.trial, wanted.terms.rollout.rollback_within_hours
    tries = trial is not None and trial.kind != "shadow" and trial.rollout.on
    return wanted.pinned or (not tries and now - wanted.since > 3600 * hours)


def judge(wanted: Wanted, traffic: Traffic, now: float) -> Verdict:
    """What the rules of a project say of what it serves and tries.

    Args:
        traffic: its requests since `begins`.
        now: UTC s.
    """
    serves = wanted.release.release
    if wanted.pinned:
        return Verdict("", "pinned: left alone until `unpin`", serves)
    findings: tuple[Finding, ...] = ()
    if wanted.trial and wanted.trial.kind != "shadow":
        ended = _ended(wanted, wanted.trial, traffic, now)
        if ended.action:
            return ended
        findings = ended.findings
    back = _back(wanted, traffic, now)
    if back.action:
        return back
    if wanted.trial and wanted.trial.kind != "shadow" and wanted.trial.rollout.promote_after:
        promoted = _promoted(wanted, wanted.trial, traffic, now)
        if promoted.action:
            return promoted
        return Verdict("", promoted.reason, promoted.subject, serves, "promote_after", promoted.findings)
    findings += back.findings
    said = back.reason or "; ".join(map(str, findings)) or "no rule"
    return Verdict("", said, serves, findings=findings)


def _ended(wanted: Wanted, trial: Trial, traffic: Traffic, now: float) -> Verdict:
    findings = _beside(wanted, trial, trial.rollout.end_when, traffic, now, _worse)
    tried, serves = trial.release.release, wanted.release.release
    return _any(findings, Verdict("end_trial", "", tried, serves, "end_when"))


def _promoted(wanted: Wanted, trial: Trial, traffic: Traffic, now: float) -> Verdict:
    tried, serves = trial.release.release, wanted.release.release
    rules = trial.rollout.promote_after
    findings = tuple(_beside(wanted, trial, rules, traffic, now, _good))
    left = max(60 * c.minutes for c in rules) - (now - _begun(wanted, trial))
    said = "; ".join(map(str, findings))
    if left > 0:
        return Verdict("", f"tried for {left / 60:.0f} more minutes; {said}", tried, findings=findings)
    if not all(f.true for f in findings):
        return Verdict("", f"not yet: {said}", tried, findings=findings)
    return Verdict("promote", said, tried, serves, "promote_after", findings)


def _begun(wanted: Wanted, trial: Trial) -> float:
    """When what is judged of a trial begins: with it, or with an `unpin` since."""
    return max(trial.since, wanted.since)


def _beside(
    wanted: Wanted,
    trial: Trial,
    rules: Sequence[Condition],
    traffic: Traffic,
    now: float,
    holds: "Holds",
) -> list[Finding]:
    """The release that is tried, against the one that serves, over the same time."""
    found: list[Finding] = []
    for rule in rules:
        since = max(_begun(wanted, trial), now - 60 * rule.minutes)
        mine, other = (traffic.of(r.release, since, now) for r in (trial.release, wanted.release))
        level = _level(rules) if holds is _worse else LEVEL
        found.append(_finding(rule, mine, other, trial.kind == "ab", level, (now - since) / 60, holds))
    return found


def _back(wanted: Wanted, traffic: Traffic, now: float) -> Verdict:
    """The release that serves, against the one before it, over as long before the switch."""
    rules, serves = wanted.terms.rollout, wanted.release.release
    if now - wanted.since > 3600 * rules.rollback_within_hours:
        rested = (
            f"{rules.rollback_within_hours:g} hours passed since the switch" if rules.rollback_when else ""
        )
        return Verdict("", rested, serves)
    before = wanted.history[-1].release if wanted.history else ""
    found: list[Finding] = []
    for rule in rules.rollback_when:
        since = max(wanted.since, now - 60 * rule.minutes)
        mine = traffic.of(serves, since, now)
        other = traffic.of(before, wanted.since - 60 * rule.minutes, wanted.since)
        # Other times, other callers: not randomised, so each request counts as one, at best.
        found.append(
            _finding(rule, mine, other, False, _level(rules.rollback_when), (now - since) / 60, _worse)
        )
    verdict = _any(found, Verdict("rollback", "", serves, before, "rollback_when"))
    if verdict.action and not before:
        return Verdict(
            "", f"{verdict.reason}; but nothing was served before it", serves, "", "", tuple(found)
        )
    return verdict


def _any(findings: Sequence[Finding], verdict: Verdict) -> Verdict:
    """That verdict where some finding is true; else what was looked at."""
    true = [f for f in findings if f.true]
    found = tuple(findings)
    if not true:
        return Verdict("", "", verdict.subject, verdict.other, findings=found)
    said = "; ".join(map(str, true))
    return Verdict(verdict.action, said, verdict.subject, verdict.other, verdict.rule, found)


# -- one condition -----------------------------------------------------------------------------------

Holds = Callable[[Condition, float, Difference | None], bool | None]


def _worse(rule: Condition, value: float, worse: Difference | None) -> bool | None:
    """So bad that it must end."""
    if rule.limit is not None:
        return value > rule.limit
    return None if worse is None or rule.margin is None else worse.low > rule.margin


def _good(rule: Condition, value: float, worse: Difference | None) -> bool | None:
    """So good that it may stay."""
    if rule.limit is not None:
        return value <= rule.limit
    return None if worse is None or rule.margin is None else worse.high <= rule.margin


def _finding(
    rule: Condition,
    mine: Traffic,
    other: Traffic,
    by_unit: bool,
    level: float,
    minutes: float,
    holds: Holds,
) -> Finding:
    taken = windows.sample(rule.measure, mine)
    known = Finding(rule.measure, None, len(taken.values), minutes, rule.limit, rule.margin)
    if len(taken.values) < rule.requests:
        return known
    value, difference, beside = windows.value(rule.measure, taken), None, windows.sample(rule.measure, other)
    facts: dict[str, Any] = {"value": value}
    if rule.margin is not None:
        facts["other_requests"] = len(beside.values)
        if len(beside.values) >= rule.requests:
            facts["other"] = windows.value(rule.measure, beside)
            difference = _difference(rule, taken, beside, by_unit, level)
    if difference:
        facts |= {"low": difference.low, "high": difference.high}
    return replace(known, true=holds(rule, value, difference), **facts)


def _difference(
    rule: Condition, mine: windows.Sample, other: windows.Sample, by_unit: bool, level: float
) -> Difference | None:
    a, b = (windows.estimate(rule.measure, s, by_unit) for s in (other, mine))
    if a is None or b is None or (by_unit and min(a.units, b.units) < sequential.LEAST_UNITS):
        return None
    return sequential.difference(a, b, not rule.share, level)


def _level(rules: Sequence[Condition]) -> float:
    """Of each, so that all margins together hold with `LEVEL` (Bonferroni)."""
    return 1 - (1 - LEVEL) / max(1, sum(c.margin is not None for c in rules))
