"""The contract of `serving.rollout`: what ends or promotes a trial, and rolls back, by rule."""

from typing import Literal, get_args

from pydantic import Field, field_validator, model_validator

from ftaas_pipelines.projects.section import Section

Share = Literal["error_rate", "feedback", "guard"]
Time = Literal["p99_ms", "first_token_ms"]
Measure = Literal[Share, Time]
LEAST_FOR_MARGIN = 50
"""Requests of each side below which an interval says less than it seems to: it rests on the normal law."""
LEAST_FOR_TAIL = 1000
"""The same for the 99th percentile: ten requests must lie beyond it."""


class Condition(Section):
    """What one measure does over a window that begins no earlier than the switch it judges.

    `error_rate`: share of requests that failed here (5xx, also in the middle of a stream); a caller's own
    error counts nowhere. `feedback`: share of thumbs down, one an answer. `guard`: share of answers that the
    guard refused or redacted. `p99_ms`: 99th percentile of the whole time. `first_token_ms`: median.
    """

    measure: Measure
    limit: float | None = Field(default=None, ge=0, description="a share (0 to 1), or milliseconds")
    margin: float | None = Field(
        default=None,
        ge=0,
        description="how much worse than the other release, by the whole interval: 0.02 is two of a hundred "
        "requests, for times 0.2 is a fifth longer",
    )
    minutes: float = Field(default=30.0, gt=0, le=10_080, description="length of the window")
    requests: int = Field(
        default=50, ge=1, description="at least so many (answers with a thumb, for feedback); else: not yet"
    )

    @property
    def share(self) -> bool:
        return self.measure in get_args(Share)

    @model_validator(mode="after")
    def _one_bound(self) -> "Condition":
        if (self.limit is None) == (self.margin is None):
            raise ValueError(f"{self.measure} needs a limit or a margin, one of them")
        bound = self.limit if self.margin is None else self.margin
        if self.share and bound is not None and bound > 1:
            raise ValueError(f"{self.measure} is a share of requests: from 0 to 1, not {bound:g}")
        least = LEAST_FOR_TAIL if self.measure == "p99_ms" else LEAST_FOR_MARGIN
        if self.margin is not None and self.requests < least:
            raise ValueError(
                f"{self.measure} with a margin needs at least {least} requests, not {self.requests}; fewer "
                "tell nothing apart"
            )
        return self


class Rollout(Section):
    """What automation does by itself in an environment; off unless written."""

    promote_after: list[Condition] = Field(
        default=[],
        description="serve what is tried when all of these hold over a whole window: at most the limit, or "
        "surely no worse than what serves by more than the margin",
    )
    end_when: list[Condition] = Field(
        default=[],
        description="end a canary or an A/B test when one of these is true: above the limit, or surely worse "
        "than what serves by more than the margin",
    )
    rollback_when: list[Condition] = Field(
        default=[],
        description="go back, and pin, when one of these is true of what serves; a margin is to the release "
        "before it, in a window as long before the switch",
    )
    rollback_within_hours: float = Field(
        default=24.0, gt=0, le=8760, description="of a deployment; what breaks later has another cause"
    )

    @field_validator("promote_after", "end_when", "rollback_when")
    @classmethod
    def _once(cls, conditions: list[Condition]) -> list[Condition]:
        seen = [(c.measure, c.limit is None, c.minutes) for c in conditions]
        if twice := next((c for c in seen if seen.count(c) > 1), None):
            raise ValueError(f"{twice[0]} stands twice with one window; keep one of them")
        return conditions

    @property
    def on(self) -> bool:
        return bool(self.promote_after or self.end_when or self.rollback_when)
