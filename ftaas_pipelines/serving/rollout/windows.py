"""What the releases of a project did in a time, request by request, from the inference log. Loads pyarrow.

An answer that was made for a shadow is nobody's: it says nothing of what callers got.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ftaas_pipelines.projects.rollout import Measure
from ftaas_pipelines.serving import answers
from ftaas_pipelines.serving.rollout import sequential
from ftaas_pipelines.serving.rollout.sequential import Estimate

_COLUMNS = (
    "id",
    "at",
    "release",
    "variant",
    "status",
    "completion_tokens",
    "total_ms",
    "first_token_ms",
    "guard",
    "caller",
    "unit",
    "shadow_of",
)
_LEFT = 499  # the caller hung up: how long it had waited is known, the answer is not
_TREATED = ("redact", "refuse")


@dataclass(frozen=True)
class Traffic:
    """Requests that some release was asked, one place in each array; all arrays are [requests].

    Attributes:
        at: UTC s.
        status: of HTTP, also where a stream broke off after a 200.
        guarded: the guard redacted or refused the answer.
        thumb: 1 up, -1 down, 0 nothing said; the last word on an answer counts.
        unit: whose requests stay with one variant of an A/B test.
    """

    at: Any
    release: Any
    variant: Any
    status: Any
    tokens: Any
    total_ms: Any
    first_token_ms: Any
    guarded: Any
    thumb: Any
    unit: Any

    def __len__(self) -> int:
        return len(self.at)

    def where(self, mask: Any) -> "Traffic":
        return Traffic(*(getattr(self, f.name)[mask] for f in fields(self)))

    def of(self, release: str, since: float, until: float) -> "Traffic":
        """What one release was asked in [since, until)."""
        return self.where((self.release == release) & (self.at >= since) & (self.at < until))

    @property
    def answered(self) -> Any:
        return self.status == 200

    @property
    def failed(self) -> Any:
        """Our failures. 503 `not_ready` is none of a release's: none was asked, and it is not in here."""
        return self.status >= 500


def read(folder: Path, project: str, since: float, until: float | None = None) -> Traffic:
    """The requests of a project in [since, until), UTC s, and what was said of them up to now."""
    tables = [t for _, t in answers.tables(folder, since, until, project, _COLUMNS) if t.num_rows]
    if not tables:
        return none()
    thumbs = _thumbs(folder, project, since)
    return together([_of(table, thumbs) for table in tables])


def none() -> Traffic:
    """No requests."""
    return Traffic(*(np.array([]) for _ in fields(Traffic)))


def together(parts: Sequence[Traffic]) -> Traffic:
    """Requests of several, in one."""
    return Traffic(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Traffic)))


def _of(table: Any, thumbs: dict[str, int]) -> Traffic:
    column = {name: table[name].to_numpy() for name in _COLUMNS if name != "guard"}
    release, unit = column["release"], column["unit"]
    said = [thumbs.get(id, 0) for id in column["id"]] if thumbs else [0] * table.num_rows
    made = Traffic(
        at=column["at"],
        release=release,
        variant=column["variant"],
        status=column["status"],
        tokens=column["completion_tokens"].astype(float),
        total_ms=column["total_ms"],
        first_token_ms=column["first_token_ms"],
        guarded=np.array([_guarded(seen) for seen in table["guard"].to_pylist()], bool),
        thumb=np.array(said, int),
        unit=np.where(unit.astype(bool), unit, column["caller"]),
    )
    return made.where(~column["shadow_of"].astype(bool) & release.astype(bool))


def _thumbs(folder: Path, project: str, since: float) -> dict[str, int]:
    columns = ("id", "at", "thumb")
    rows = answers.scan(folder, since, project=project, columns=columns, kind="feedback")
    said = sorted((r for r in rows if r["thumb"]), key=lambda row: row["at"])
    return {row["id"]: 1 if row["thumb"] == "up" else -1 for row in said}


def _guarded(seen: Sequence[dict[str, Any]] | None) -> bool:
    return any(one["where"] == "output" and one["action"] in _TREATED for one in seen or ())


# -- measures --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """The requests that a measure speaks of, and what it takes of each: [requests] both."""

    values: Any
    units: Any


def sample(measure: str, traffic: Traffic) -> Sample:
    """What a measure takes of whom: see `projects.rollout.Condition`, and `comparison.MEASURES`."""
    served = traffic.answered | traffic.failed
    timed = traffic.answered | (traffic.status == _LEFT)  # who gave up had waited at least so long
    taken: dict[str, tuple[Any, Any]] = {
        "error_rate": (served, traffic.failed),
        "feedback": (traffic.thumb != 0, traffic.thumb < 0),
        "guard": (traffic.answered, traffic.guarded),
        "p99_ms": (timed, traffic.total_ms),
        "first_token_ms": (traffic.answered & (traffic.first_token_ms > 0), traffic.first_token_ms),
        "mean_ms": (traffic.answered, traffic.total_ms),
        "tokens": (traffic.answered, traffic.tokens),
    }
    mask, values = taken[measure]
    return Sample(values[mask], traffic.unit[mask])


def value(measure: Measure, taken: Sample) -> float:
    """The measure itself, of at least one request."""
    if measure == "p99_ms":
        return float(np.quantile(taken.values, 0.99))
    if measure == "first_token_ms":
        return float(np.median(taken.values))
    return float(np.mean(taken.values))


def estimate(measure: str, taken: Sample, by_unit: bool) -> Estimate | None:
    """The measure with its standard error; None where there is too little to say.

    Args:
        by_unit: requests of one unit depend on each other.
    """
    units = None
    if by_unit and len(taken.values):
        units = np.unique(taken.units.astype(str), return_inverse=True)[1]
    if measure == "p99_ms":
        return sequential.quantile(taken.values, 0.99, units)
    if measure == "first_token_ms":
        return sequential.quantile(taken.values, 0.5, units)
    if measure in ("mean_ms", "tokens"):
        return sequential.mean(taken.values, units)
    return sequential.share(taken.values, units)
