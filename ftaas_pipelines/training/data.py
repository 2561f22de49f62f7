"""Splits to tokens and labels, in the order of their record ids."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.data.rows.messages import of_row
from ftaas_pipelines.errors import InputInvalid, Problem
from ftaas_pipelines.inference import templates
from ftaas_pipelines.training.plan import VALIDATION_ROWS

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_NAMED = 5  # record ids that an error shows
_COLUMNS = ["record_id", "prompt", "answer", "messages", "extra"]


@dataclass(frozen=True)
class TrainingData:
    """What the trainer reads.

    Attributes:
        train: columns `input_ids` and `labels`.
        validation: the same, at most `VALIDATION_ROWS` rows; None where the split is empty.
        truncated: training records that `max_seq_tokens` cut short.
    """

    train: "Dataset"
    validation: "Dataset | None"
    truncated: int


def load(splits: Path, tokenizer: "PreTrainedTokenizerBase", family: str, max_tokens: int) -> TrainingData:
    """Read and tokenize the train and validation splits of a splits artifact.

    Record ids are hashes, so the first rows in their order are a fair sample for validation loss.

    Raises:
        InputInvalid: a record has no answer token left within `max_tokens`, or is of a kind that would
            be learnt wrongly; it names some of them.
    """
    train, truncated = _examples(splits / "train.parquet", tokenizer, family, max_tokens)
    validation, _ = _examples(splits / "validation.parquet", tokenizer, family, max_tokens, VALIDATION_ROWS)
    return TrainingData(_dataset(train), _dataset(validation) if validation else None, truncated)


def _examples(
    file: Path,
    tokenizer: "PreTrainedTokenizerBase",
    family: str,
    max_tokens: int,
    limit: int | None = None,
) -> tuple[list[templates.Example], int]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(file, columns=_COLUMNS).to_pylist()
    rows = sorted(rows, key=lambda row: row["record_id"])[:limit]
    _check_kinds(rows, file.name)
    examples = [templates.example(tokenizer, of_row(row), family, max_tokens) for row in rows]
    empty = [row["record_id"] for row, e in zip(rows, examples, strict=True) if e.supervised == 0]
    if empty:
        shown = ", ".join(empty[:_NAMED]) + (
            f" and {len(empty) - _NAMED} more" if len(empty) > _NAMED else ""
        )
        raise InputInvalid(
            f"{len(empty)} of {len(rows)} records have no token of their answer "
            f"within max_seq_tokens={max_tokens}",
            file.name,
            f"record {shown}",
            "raise training.max_seq_tokens, or drop long records with dataset.cleaning.max_characters",
        )
    # A whole example is shorter than the limit, or ends with the end token just on it.
    cut = sum(len(e.labels) == max_tokens and e.labels[-1] != tokenizer.eos_token_id for e in examples)
    return examples, cut


def _check_kinds(rows: list[dict[str, Any]], where: str) -> None:
    """Refuse what would be trained on otherwise than it is meant: better no adapter than a wrong one."""
    meant: dict[str, list[str]] = {}
    for row in rows:
        extra = json.loads(row.get("extra") or "{}")
        if "label" in extra:
            meant.setdefault("labels (good or bad answers)", []).append(row["record_id"])
        if "tools" in extra or '"tool_calls":[' in (row["messages"] or ""):
            meant.setdefault("tools, which the chat template does not render", []).append(row["record_id"])
        if '"images":[' in (row["messages"] or ""):
            meant.setdefault("images, which the base model does not see", []).append(row["record_id"])
    if meant:
        raise InputInvalid(
            [
                Problem(
                    f"method sft cannot learn from {len(ids)} of {len(rows)} records: they have {what}",
                    where,
                    f"record {', '.join(ids[:_NAMED])}",
                    "leave them out, or give them as messages of text alone",
                )
                for what, ids in meant.items()
            ]
        )


def _dataset(examples: list[templates.Example]) -> "Dataset":
    from datasets import Dataset

    return Dataset.from_dict(
        {"input_ids": [e.input_ids for e in examples], "labels": [e.labels for e in examples]}
    )
