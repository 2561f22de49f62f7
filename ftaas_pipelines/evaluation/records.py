"""What is asked in an evaluation: the records of a split and of its challenge sets."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from ftaas_pipelines.data.rows.messages import of_row
from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.inference.templates import Message
from ftaas_pipelines.metrics.baselines import Example
from ftaas_pipelines.metrics.text import json_object

VALIDATION_RECORDS = 200  # enough to choose a recipe by, cheap enough to ask every one of them
_COLUMNS = ["record_id", "prompt", "answer", "messages", "kind"]


@dataclass(frozen=True)
class Record:
    """One question with its reference answer.

    Attributes:
        messages: what the model is shown, without the last answer.
        slice: `structured` when the reference is a JSON object, else `text`.
    """

    record_id: str
    messages: tuple[Message, ...]
    prompt: str
    reference: str
    slice: Literal["structured", "text"]


def read(
    splits: Path, split: Literal["validation", "test"], max_records: int | None
) -> dict[str, list[Record]]:
    """The sets to score, by name: the split, and on test each challenge under its own name.

    Args:
        splits: folder of a `splits` artifact.
        split: which of them.
        max_records: at most so many a set, the same whatever else is in it; None: all of test, 200
            of validation.

    Raises:
        FtaasError: the split is empty.
    """
    files = {split: splits / f"{split}.parquet"}
    if split == "test":
        files |= {p.stem.removeprefix("challenge_"): p for p in sorted(splits.glob("challenge_*.parquet"))}
    elif max_records is None:
        max_records = VALIDATION_RECORDS
    sets = {
        name: _sampled([_record(row) for row in _rows(path)], max_records) for name, path in files.items()
    }
    if not sets[split]:
        raise FtaasError(
            f"the {split} split has no records",
            "dataset.splits",
            do=f"raise dataset.splits.{split}, or add rows",
        )
    return {name: records for name, records in sets.items() if records}


def training_examples(splits: Path) -> list[Example]:
    """The training rows, as the naive baselines know them, by record_id."""
    return [Example(row["prompt"], row["answer"]) for row in _rows(splits / "train.parquet")]


def _rows(path: Path) -> list[dict[str, Any]]:
    """The records of a file by record_id. Plain texts beside questions are to be read, not asked."""
    rows: list[dict[str, Any]] = pq.read_table(path, columns=_COLUMNS).to_pylist()
    asked = [row for row in rows if row["kind"] != "text"]
    return sorted(asked or rows, key=lambda r: r["record_id"])


def _record(row: dict[str, Any]) -> Record:
    messages: list[Message] = of_row(row)
    reference = str(row["answer"])
    kind = "text" if json_object(reference) is None else "structured"
    return Record(row["record_id"], tuple(messages[:-1]), row["prompt"], reference, kind)


def _sampled(records: Sequence[Record], most: int | None) -> list[Record]:
    if most is None or len(records) <= most:
        return list(records)
    chosen = sorted(records, key=lambda r: draw(r.record_id))[:most]
    return sorted(chosen, key=lambda r: r.record_id)


def draw(record_id: str) -> str:
    """A record's place in a lottery that never changes: hash of a fixed word and its id."""
    return hashlib.sha256(f"evaluation:{record_id}".encode()).hexdigest()
