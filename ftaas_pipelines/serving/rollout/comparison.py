"""The report of a trial: each measure of the release that serves (a) and the one that is tried (b).

All intervals of a report hold together, and whenever one looks (`sequential.py`). In a canary each request
is drawn by itself, so requests are counted. In an A/B test callers are: what one caller asks depends on
each other, so variances are of sums by caller; the effect is still of all requests, so whoever asks much
weighs much. With fewer than 20 callers a side there is no interval.
"""

import time
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.governance.ledger import Entry, Ledger
from ftaas_pipelines.projects.rollout import LEAST_FOR_MARGIN
from ftaas_pipelines.serving.desired import Folder
from ftaas_pipelines.serving.rollout import sequential, windows
from ftaas_pipelines.serving.rollout.sequential import LEAST_UNITS, LEVEL, Difference, Estimate
from ftaas_pipelines.serving.rollout.windows import Traffic

_TRIED = ("canary", "ab")
_ENDS = ("trial_ended", "trial_started", "deployment", "rollback", "deployment_stopped")


@dataclass(frozen=True)
class Kind:
    """A measure: `ratio` where b is told as a part of a; `good` -1 where less is better, 0 where neither."""

    name: str
    ratio: bool
    good: int


MEASURES = (
    Kind("error_rate", False, -1),
    Kind("feedback", False, -1),
    Kind("guard", False, -1),
    Kind("mean_ms", True, -1),
    Kind("p99_ms", True, -1),
    Kind("first_token_ms", True, -1),
    Kind("tokens", True, 0),
)


@dataclass(frozen=True)
class Tried:
    """A trial, running or over.

    Attributes:
        since, until: UTC s; `until` of one that runs is now.
        release: what is tried (b).
    """

    project: str
    environment: str
    kind: str
    release: str
    since: float
    until: float
    running: bool


@dataclass(frozen=True)
class Row:
    """One measure of both.

    Attributes:
        a, b: the value of each; None where there is none.
        effect, low, high: b against a: shares subtracted, times as a ratio less 1.
        needed: requests that b needs to show the least effect that matters, with 80% power; None: unknown.
        verdict: in words.
    """

    measure: str
    a: float | None
    a_requests: int
    a_units: int
    b: float | None
    b_requests: int
    b_units: int
    effect: float | None
    low: float | None
    high: float | None
    needed: int | None
    verdict: str


@dataclass(frozen=True)
class Report:
    tried: Tried
    serving: str
    by_caller: bool
    rows: list[Row]
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self.tried), **{k: v for k, v in asdict(self).items() if k != "tried"}}


def find(folder: Folder, ledger: Ledger, project: str) -> Tried:
    """The canary or A/B test that runs there, else the last.

    Raises:
        InputInvalid: there was none.
    """
    wanted = folder.desired().projects.get(project)
    trial = wanted.trial if wanted else None
    environment, now = folder.environment, time.time()
    if trial and trial.kind in _TRIED:
        return Tried(project, environment, trial.kind, trial.release.release, trial.since, now, True)
    entries = ledger.entries(_ENDS, project=project, authentic=True)
    own = [e for e in entries if e.environment == environment]
    starts = [e for e in own if e.kind == "trial_started" and e.body["kind"] in _TRIED]
    if not starts:
        do = f"`ftaas deployment try {project} --as ab --env {environment}`"
        raise InputInvalid("no canary or A/B test was run", f"{project}/{environment}", do=do)
    begun = starts[-1]
    ended = next((_at(e) + 1 for e in own if e.seq > begun.seq), now)  # its second is not over yet
    kind = str(begun.body["kind"])
    return Tried(project, environment, kind, begun.subject, _at(begun), ended, False)


def compare(tried: Tried, traffic: Traffic, share: float = 0.02, ratio: float = 0.1) -> Report:
    """The report.

    Args:
        traffic: the project's requests of that time.
        share, ratio: the least effect that matters, for the size that is needed.
    """
    b = traffic.where(traffic.release == tried.release)
    beside = "a" if tried.kind == "ab" else ""
    a = traffic.where((traffic.release != tried.release) & (traffic.variant == beside))
    by_caller = tried.kind == "ab"
    pairs: dict[str, tuple[windows.Sample, windows.Sample]] = {}
    for kind in MEASURES:
        taken = windows.sample(kind.name, a), windows.sample(kind.name, b)
        if len(taken[0].values) or len(taken[1].values):
            pairs[kind.name] = taken
    level = 1 - (1 - LEVEL) / max(1, len(pairs))
    rows = [
        _row(kind, *pairs[kind.name], by_caller, level, ratio if kind.ratio else share)
        for kind in MEASURES
        if kind.name in pairs
    ]
    serving = max(set(a.release), key=list(a.release).count) if len(a) else ""
    return Report(tried, serving, by_caller, rows, _overall(rows))


def _row(
    kind: Kind, a: windows.Sample, b: windows.Sample, by_caller: bool, level: float, least: float
) -> Row:
    ea, eb = (windows.estimate(kind.name, taken, by_caller) for taken in (a, b))
    units = tuple(len(set(taken.units)) for taken in (a, b))
    difference, size, why = None, None, _too_few(ea, eb, by_caller)
    if ea and eb and not why:
        difference = sequential.difference(ea, eb, kind.ratio, level)
        size = max(LEAST_FOR_MARGIN, sequential.needed(ea, eb, kind.ratio, least, level))
    return Row(
        kind.name,
        ea.value if ea else None,
        len(a.values),
        units[0],
        eb.value if eb else None,
        len(b.values),
        units[1],
        difference.effect if difference else None,
        difference.low if difference else None,
        difference.high if difference else None,
        size,
        why or _said(kind, difference),
    )


def _too_few(a: Estimate | None, b: Estimate | None, by_caller: bool) -> str:
    if a is None or b is None or min(a.requests, b.requests) < LEAST_FOR_MARGIN:
        return "too few requests to say"
    if by_caller and min(a.units, b.units) < LEAST_UNITS:
        return f"too few callers to say: {LEAST_UNITS} a side"
    return ""


def _said(kind: Kind, found: Difference | None) -> str:
    if found is None or found.low <= 0 <= found.high:
        return "no difference shown yet"
    more = found.low > 0
    if kind.good == 0:
        return "b has more" if more else "b has fewer"
    return "a better" if more == (kind.good < 0) else "b better"


def _overall(rows: list[Row]) -> str:
    said = {row.verdict for row in rows}
    if {"a better", "b better"} <= said:
        return "each is better in something: see the table"
    for name in ("a better", "b better"):
        if name in said:
            which = "what serves" if name[0] == "a" else "what is tried"
            return f"{name}: {which}, in {', '.join(r.measure for r in rows if r.verdict == name)}"
    known = any(row.low is not None for row in rows)
    return "no difference shown yet" if known else "too little is known to compare"


def _at(entry: Entry) -> float:
    return datetime.fromisoformat(entry.at).timestamp()
