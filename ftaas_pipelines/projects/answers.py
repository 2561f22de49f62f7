"""What is kept of the answers that a project gives, for how long, and what they cost."""

from typing import Literal

from pydantic import Field

from ftaas_pipelines.projects.section import Section


class AnswerPolicy(Section):
    """The section `answers`, of the platform policy and of a project.

    Attributes:
        keep_days: whole days that an answer's row is kept; then it goes with its day.
        texts: `redacted` keeps question and answer as the guard left them; `none` keeps neither.
        usd_per_1k_tokens: price of 1,000 tokens, read or written, for the log and the metrics.
    """

    keep_days: int = Field(default=90, ge=1, le=3650)
    texts: Literal["none", "redacted"] = "none"
    usd_per_1k_tokens: float = Field(default=0.0, ge=0)
