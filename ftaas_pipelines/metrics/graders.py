"""Graders: what an answer is worth, as a program can tell. Rewards of GRPO and RLOO, and checks elsewhere.

Each declared grader (`projects.reward`) gives every answer a part, 0 to 1 unless a Python function says
otherwise; the total is their weighted sum. What a grader does on an answer depends on the answer alone:
no time, no randomness, no neighbours, or an adapter could not be made again.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import partial
from pathlib import Path

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.metrics import json_answers, python_graders, text, timed_patterns
from ftaas_pipelines.projects import reward
from ftaas_pipelines.projects.reward import Grader

LONGEST = 10_000  # characters of a text that similarity looks at; its cost grows with their square
# A number as people write it: 1,234.50, -$3, .5, 2e6. A sign behind a word or a bracket is a minus.
_NUMBER = re.compile(
    r"(?P<minus>(?<![\w)\]])[-\u2212])?[$\u20ac\u00a3\u00a5]?(?P<inner>(?<=[$\u20ac\u00a3\u00a5])[-\u2212])?"
    r"(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?P<power>[eE][+-]?[0-9]{1,3})?"
)

Scores = Callable[[Sequence[str], Sequence[str], Sequence[str]], list[float]]
_Each = Callable[[str, str], float]


@dataclass(frozen=True)
class Graded:
    """What one answer is worth.

    Attributes:
        total: the weighted sum of the parts.
        parts: each grader's score, by its name.
    """

    total: float
    parts: dict[str, float]


def names(graders: Sequence[Grader]) -> list[str]:
    """A name for each grader: its kind, or a Python function's own; counted where one comes again."""
    found: list[str] = []
    for grader in graders:
        name = grader.entry.rpartition(":")[2] if isinstance(grader, reward.Python) else grader.kind
        same = sum(other == name or other.startswith(f"{name}_") for other in found)
        found.append(f"{name}_{same + 1}" if same else name)
    return found


class Panel:
    """Graders made ready once, for many batches.

    Args:
        graders: with their weights.
        folder: what Python graders are read from (the project's folder, or a copy of the files).

    Raises:
        InputInvalid: a Python grader cannot be loaded.
    """

    def __init__(self, graders: Sequence[Grader], folder: Path | None = None):
        self.names = names(graders)
        self.weights = [grader.weight for grader in graders]
        self._scores = [_scores(g, n, folder) for g, n in zip(graders, self.names, strict=True)]

    def part(
        self,
        number: int,
        prompts: Sequence[str],
        answers: Sequence[str],
        expected: Sequence[str],
        records: Sequence[str] = (),
    ) -> list[float]:
        """The scores of one grader, one an answer; arguments as `grade`."""
        try:
            return self._scores[number](prompts, answers, expected)
        except _Fault as fault:
            record = records[fault.place] if records else f"number {fault.place + 1} of the batch"
            raise InputInvalid(
                f"grader {self.names[number]} {fault.what}", f"record {record}", fault.got, fault.do
            ) from fault.__cause__

    def grade(
        self,
        prompts: Sequence[str],
        answers: Sequence[str],
        expected: Sequence[str],
        records: Sequence[str] = (),
    ) -> list[Graded]:
        """What each answer is worth; all arguments are as long as there are answers.

        Args:
            prompts: what was asked.
            expected: the checkable answers.
            records: record ids, for errors.

        Raises:
            InputInvalid: a grader cannot grade one of them; it is named.
        """
        columns = [self.part(i, prompts, answers, expected, records) for i in range(len(self.names))]
        rows = zip(*columns, strict=True) if columns else ((),) * len(answers)
        return [
            Graded(
                sum(weight * score for weight, score in zip(self.weights, row, strict=True)),
                dict(zip(self.names, row, strict=True)),
            )
            for row in rows
        ]


def grade(
    graders: Sequence[Grader],
    prompts: Sequence[str],
    answers: Sequence[str],
    expected: Sequence[str],
    folder: Path | None = None,
    records: Sequence[str] = (),
) -> list[Graded]:
    """What each answer is worth; see `Panel`."""
    return Panel(graders, folder).grade(prompts, answers, expected, records)


_Fault = python_graders.Fault


def _scores(grader: Grader, name: str, folder: Path | None) -> Scores:
    """The function that scores a batch."""
    if isinstance(grader, reward.Python):
        return python_graders.load(grader.entry, folder)
    return partial(_one_by_one, _each(grader))


def _one_by_one(
    score: _Each, prompts: Sequence[str], answers: Sequence[str], expected: Sequence[str]
) -> list[float]:
    scores: list[float] = []
    for place, (answer, wanted) in enumerate(zip(answers, expected, strict=True)):
        try:
            scores.append(score(answer, wanted))
        except timed_patterns.TooSlow as slow:
            raise _Fault(
                place,
                f"gave up on its pattern after {slow.seconds:g} s",
                repr(slow.pattern),
                "write one without nested repeats, such as (a+)+",
            ) from slow
        except _Ungradable as fault:
            raise _Fault(place, str(fault), repr(wanted[:80]), fault.do) from None
    return scores


class _Ungradable(Exception):
    def __init__(self, what: str, do: str):
        super().__init__(what)
        self.do = do


def _each(grader: Grader) -> _Each:
    """The function that scores one answer against the expected one."""
    match grader:
        case reward.ExactMatch(ignore_case=ignore_case):
            return partial(_exact_match, ignore_case)
        case reward.Regex(pattern=pattern):
            return partial(_regex, pattern)
        case reward.Numeric(tolerance=tolerance, after=after):
            return partial(_numeric, Decimal(str(tolerance)), after)
        case reward.JsonSchema(json_schema=schema):
            fits = json_answers.checker(schema)
            return lambda answer, _: float(fits(answer))
        case reward.Similarity(measure=measure):
            return _similarity(measure)
        case reward.Python():
            raise AssertionError("scores a batch, not one answer")


def _exact_match(ignore_case: bool, answer: str, expected: str) -> float:
    answer, expected = answer.strip(), expected.strip()
    return float(answer.casefold() == expected.casefold() if ignore_case else answer == expected)


def _regex(pattern: str, answer: str, _: str) -> float:
    return float(timed_patterns.found(pattern, answer, dot_all=True))


def _numeric(tolerance: Decimal, after: str, answer: str, expected: str) -> float:
    wanted = number(expected, after if after in expected else "")
    if wanted is None:
        raise _Ungradable(
            "finds no number in the expected answer", "leave such records out, or name the mark in `after`"
        )
    given = number(answer, after)
    return float(given is not None and abs(given - wanted) <= tolerance)


def number(said: str, after: str = "") -> Decimal | None:
    """The number that a text comes to: its last one, or the first behind the last mark `after`.

    Commas that part thousands, currency signs and what stands around it do not count; so 3,5 is two
    numbers, and 1/2 as well.
    """
    if not after:
        matches = list(_NUMBER.finditer(said))
        match = matches[-1] if matches else None
    else:
        _, mark, rest = said.rpartition(after)
        match = _NUMBER.search(rest) if mark else None
    if match is None:
        return None
    sign = "-" if match["minus"] or match["inner"] else ""
    try:
        return Decimal(f"{sign}{match['number'].replace(',', '')}{match['power'] or ''}")
    except InvalidOperation:  # beyond what Decimal holds
        return None


def _similarity(measure: str) -> _Each:
    score = _ratio if measure == "ratio" else text.scorer(measure)
    top = 100 if measure == "chrf" else 1
    return lambda answer, expected: min(1.0, max(0.0, score(answer[:LONGEST], expected[:LONGEST]) / top))


def _ratio(answer: str, expected: str) -> float:
    from rapidfuzz.distance import Indel

    return Indel.normalized_similarity(answer, expected)
