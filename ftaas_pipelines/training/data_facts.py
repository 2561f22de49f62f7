"""What a split holds, as far as methods care: kinds of records, images, labels, lengths. Light: no torch."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

COLUMNS = ("kind", "prompt", "answer", "messages", "extra")
_NOTHING = re.compile(r"[,$\s]")
_NUMBER = re.compile(r"[-+]?\d*\.?\d+%?")


@dataclass(frozen=True)
class Lengths:
    """Characters of a text: half the records have no more than `median`, nineteen of twenty than `p95`."""

    median: int = 0
    p95: int = 0
    longest: int = 0

    @classmethod
    def of(cls, lengths: list[int]) -> "Lengths":
        if not lengths:
            return cls()
        ordered = sorted(lengths)
        last = len(ordered) - 1
        return cls(ordered[last // 2], ordered[round(last * 0.95)], ordered[-1])


@dataclass(frozen=True)
class DataFacts:
    """Facts of the records that were looked at.

    Attributes:
        records: in the whole split; `seen` of them were looked at.
        kinds: records of each kind (`data.rows.records.Record.kind`).
        images, tools: records that show images, or that call or offer tools.
        good, bad: labelled answers of each sign.
        worked: prompts whose answer says more than the value that is checked; `numbers`: that value is one.
        answers: different answers, white space at the ends apart.
    """

    records: int = 0
    seen: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict[str, int])
    images: int = 0
    tools: int = 0
    good: int = 0
    bad: int = 0
    worked: int = 0
    numbers: int = 0
    answers: int = 0
    prompt_characters: Lengths = Lengths()
    answer_characters: Lengths = Lengths()

    def share(self, *kinds: str) -> float:
        """Which part of the records is of one of these kinds, 0 to 1."""
        return sum(self.kinds.get(kind, 0) for kind in kinds) / max(1, self.seen)


def of_split(
    splits: Path,
    columns: Sequence[str] = COLUMNS,
    at_most: int | None = None,
    sources: Sequence[str] | None = None,
) -> DataFacts:
    """Facts of the training split of a splits artifact.

    Args:
        splits: the artifact's folder.
        columns: what is read; facts that other columns tell stay zero.
        at_most: look at so many records; they lie in the order of their ids, which are hashes.
        sources: only records of these.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(splits / "train.parquet") as file:
        if sources:
            rows = _rows(file, (*columns, "source"), at_most)
            return of_rows(row for row in rows if row["source"] in sources)
        return of_rows(_rows(file, columns, at_most), file.metadata.num_rows)


def _rows(file: Any, columns: Sequence[str], at_most: int | None) -> Iterator[dict[str, Any]]:
    left = at_most
    for batch in file.iter_batches(columns=list(columns)):
        rows = batch.to_pylist()[:left]
        yield from rows
        if left is not None:
            left -= len(rows)
            if left <= 0:
                return


def of_rows(rows: Iterable[Mapping[str, Any]], records: int | None = None) -> DataFacts:
    """Facts of rows of the record table.

    Args:
        records: how many there are in all; None: these.
    """
    kinds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    answers: set[int] = set()
    prompt_lengths: list[int] = []
    answer_lengths: list[int] = []
    for row in rows:
        kinds[row["kind"]] += 1
        messages, extra = row.get("messages") or "", row.get("extra") or ""
        counts["images"] += '"images":[' in messages
        counts["tools"] += '"tool_calls":[' in messages or '"tools":' in extra
        if extra:
            _count_extra(counts, orjson.loads(extra), row.get("answer") or "")
        if (answer := row.get("answer")) is not None:
            answers.add(hash(answer.strip()))
            answer_lengths.append(len(answer))
        if (prompt := row.get("prompt")) is not None:
            prompt_lengths.append(len(prompt))
    seen = sum(kinds.values())
    return DataFacts(
        records=seen if records is None else records,
        seen=seen,
        kinds=dict(sorted(kinds.items())),
        answers=len(answers),
        prompt_characters=Lengths.of(prompt_lengths),
        answer_characters=Lengths.of(answer_lengths),
        **{name: counts[name] for name in ("images", "tools", "good", "bad", "worked", "numbers")},
    )


def _count_extra(counts: Counter[str], extra: dict[str, Any], answer: str) -> None:
    if "label" in extra:
        counts["good" if extra["label"] else "bad"] += 1
    if "expected" in extra:
        value = _NOTHING.sub("", extra["expected"])
        counts["worked"] += _NOTHING.sub("", answer) != value
        counts["numbers"] += _NUMBER.fullmatch(value) is not None
