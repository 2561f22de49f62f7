"""What detectors see on records: kind and place, never the value.

The detectors are in `contacts.py`, `identifiers.py`, `credentials.py`, `particulars.py`, `toxicity.py`
and `person_names.py`; `screen.py` runs them. One that did not run is listed as "not checked", so that
silence never reads as clean.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ftaas_pipelines.projects.dataset import Entity

Severity = Literal["low", "medium", "high"]


class Span(NamedTuple):
    """A place in a text: characters `start` to `end` (exclusive)."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Detector:
    """Sees one entity in a text.

    Attributes:
        gate: an RE2 pattern that every text with a finding matches; it is searched in whole batches of
            texts at once, so that `find` is spent on few of them.
        entity: what a treatment is chosen by; None for what is reported and never rewritten (toxicity).
        recurs: whether a value found once is the same thing wherever the record repeats it.
    """

    name: str
    severity: Severity
    gate: str
    find: Callable[[str], Iterable[Span]]
    entity: Entity | None = None
    recurs: bool = True


@dataclass(frozen=True)
class Finding:
    """What one detector saw.

    Attributes:
        field: system, prompt or answer; message_<n> (from 1) for other messages and
            message_<n>.tool_calls for their tool calls; else the part of `extra`: rejected, expected, tools,
            or column.<name>.
        start: first character, in the text as it came in; `end` is exclusive.
    """

    record_id: str
    detector: str
    kind: str
    field: str
    start: int
    end: int
    severity: Severity


def counts(
    found: Iterable[Finding],
    checked: Sequence[str],
    not_checked: Sequence[str],
) -> dict[str, int | str]:
    """Findings by detector; "not checked" for those that did not run."""
    seen = Counter(f.detector for f in found)
    return {**{name: "not checked" for name in not_checked}, **{name: seen[name] for name in checked}}
