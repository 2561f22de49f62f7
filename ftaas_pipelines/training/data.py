"""Splits to tokens and labels, in the order of their record ids."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.data.rows.messages import of_row
from ftaas_pipelines.errors import InputInvalid, Problem
from ftaas_pipelines.inference import templates
from ftaas_pipelines.projects.recipe import Training
from ftaas_pipelines.training.materials import Materials
from ftaas_pipelines.training.plan import VALIDATION_ROWS

if TYPE_CHECKING:
    from datasets import Dataset

ROW = (
    "row"  # the column that leads from an example back to its record: place in `record_ids`, -1 in validation
)
Row = dict[str, Any]
_NO_LIMIT = 1 << 60
_NAMED = 5  # record ids that an error shows
_COLUMNS = ["record_id", "kind", "prompt", "answer", "messages", "extra"]


@dataclass(frozen=True)
class TrainingData:
    """What the trainer reads.

    Attributes:
        train: what the method's trainer wants, and the column `row`.
        validation: the same, at most `VALIDATION_ROWS` rows; None where the split is empty.
        record_ids: of the training split, by `row`.
        truncated, dropped: training records that `max_seq_tokens` cut short, or that were left out for it.
        prompts: validation conversations up to their answer, and the answer, for samples.
    """

    train: "Dataset"
    validation: "Dataset | None"
    record_ids: list[str]
    truncated: int = 0
    dropped: int = 0
    prompts: Sequence[tuple[list[dict[str, Any]], str]] = ()


def rows(
    splits: Path, split: str, limit: int | None = None, sources: Sequence[str] | None = None
) -> list[Row]:
    """The records of a split, by record id: hashes, so the first of them are a fair sample.

    Args:
        sources: only records of these.
    """
    import pyarrow.parquet as pq

    wanted = [("source", "in", list(sources))] if sources else None
    table = pq.read_table(splits / f"{split}.parquet", columns=_COLUMNS, filters=wanted)
    found: list[Row] = table.to_pylist()
    return sorted(found, key=lambda row: row["record_id"])[:limit]


def learnt_from(materials: Materials) -> list[Row]:
    """The training records of the recipe's sources."""
    return rows(materials.splits, "train", sources=materials.inputs.sources)


def both(materials: Materials) -> tuple[list[Row], list[Row]]:
    """The records to learn from, and at most `VALIDATION_ROWS` to take the validation loss on."""
    sources = materials.inputs.sources
    return learnt_from(materials), rows(materials.splits, "validation", VALIDATION_ROWS, sources)


def load(materials: Materials, *, whole: bool = False) -> TrainingData:
    """The training and validation splits as token ids and labels, loss on the answers alone.

    Args:
        whole: training records are not held to `max_seq_tokens`, because packing cuts them into rows.

    Raises:
        InputInvalid: a record has no answer token left within `max_seq_tokens`, is longer than that and the
            recipe refuses such, or is of a kind that would be learnt wrongly; it names some of them.
    """
    inputs, tokenizer = materials.inputs, materials.tokenizer
    train, validation = both(materials)
    for found, name in ((train, "train.parquet"), (validation, "validation.parquet")):
        check_kinds(found, name, inputs.method.kind)

    def example(row: Row, limit: int) -> templates.Example:
        return templates.example(tokenizer, of_row(row), inputs.family, limit)

    limits = {"max_seq_tokens": _NO_LIMIT} if whole else {}
    learnt, kept, cut = _fitted(train, "train.parquet", example, inputs.training.model_copy(update=limits))
    checked, _, _ = _fitted(validation, "validation.parquet", example, inputs.training)
    return TrainingData(
        dataset(learnt),
        dataset(checked, learnt=False) if checked else None,
        record_ids=[row["record_id"] for row in kept],
        truncated=cut,
        dropped=len(train) - len(kept),
        prompts=prompts(validation, inputs.training.samples),
    )


def _fitted(
    found: list[Row], where: str, example: Callable[[Row, int], templates.Example], training: Training
) -> tuple[list[templates.Example], list[Row], int]:
    """Examples within `max_seq_tokens`, their records, and how many were cut short."""
    limit = training.max_seq_tokens
    longer = limit + 1  # one token more tells whether there is one more
    whole = [example(row, longer) for row in found]
    long = [len(e.input_ids) > limit or len(e.labels) > limit for e in whole]
    keep = within(found, long, where, training)
    found, cut = [found[i] for i in keep], sum(long[i] for i in keep)
    examples = [templates.Example(e.input_ids[:limit], e.labels[:limit]) for e in (whole[i] for i in keep)]
    empty = [row["record_id"] for row, e in zip(found, examples, strict=True) if e.supervised == 0]
    check_answered(len(found), empty, where, limit)
    return examples, found, cut


def within(found: Sequence[Row], long: Sequence[bool], where: str, training: Training) -> list[int]:
    """Places of the records to learn from, by what becomes of those longer than `max_seq_tokens`.

    Raises:
        InputInvalid: there are some and the recipe refuses them, or it drops them and none is left.
    """
    limit = training.max_seq_tokens
    if any(long) and training.too_long == "refuse":
        raise InputInvalid(
            f"{sum(long)} of {len(found)} records are longer than max_seq_tokens={limit}",
            where,
            named([row["record_id"] for row, is_long in zip(found, long, strict=True) if is_long]),
            "raise training.max_seq_tokens, or set training.too_long to truncate or drop",
        )
    if training.too_long != "drop":
        return list(range(len(found)))
    if found and all(long):
        raise InputInvalid(
            f"all {len(found)} records are longer than max_seq_tokens={limit}: none is left",
            where,
            do="raise training.max_seq_tokens",
        )
    return [i for i, is_long in enumerate(long) if not is_long]


def check_answered(records: int, empty: Sequence[str], where: str, limit: int) -> None:
    """Refuse records that `max_seq_tokens` left no token of their answer.

    Args:
        empty: their ids, of so many `records`.
    """
    if empty:
        raise InputInvalid(
            f"{len(empty)} of {records} records have no token of their answer within max_seq_tokens={limit}",
            where,
            named(empty),
            "raise training.max_seq_tokens, or set training.too_long to drop",
        )


def named(record_ids: Sequence[str]) -> str:
    """Some record ids, as an error shows them."""
    more = f" and {len(record_ids) - _NAMED} more" if len(record_ids) > _NAMED else ""
    return f"record {', '.join(record_ids[:_NAMED])}{more}"


def check_kinds(
    found: list[Row], where: str, method: str, *, labels: bool = False, images: bool = False
) -> None:
    """Refuse what would be trained on otherwise than it is meant: better no adapter than a wrong one.

    Args:
        labels, images: whether the method learns from labels, and sees images.
    """
    meant: dict[str, list[str]] = {}
    for row in found:
        extra = json.loads(row.get("extra") or "{}")
        if "label" in extra and not labels:
            meant.setdefault("labels (good or bad answers)", []).append(row["record_id"])
        if "tools" in extra or '"tool_calls":[' in (row["messages"] or ""):
            meant.setdefault("tools, which the chat template does not render", []).append(row["record_id"])
        if '"images":[' in (row["messages"] or "") and not images:
            meant.setdefault("images, which only method vision sees", []).append(row["record_id"])
    if meant:
        raise InputInvalid(
            [
                Problem(
                    f"method {method} cannot learn from {len(ids)} of {len(found)} records: they have {what}",
                    where,
                    f"record {', '.join(ids[:_NAMED])}",
                    "leave them out, or give them as messages of text alone",
                )
                for what, ids in meant.items()
            ]
        )


def prompts(found: Sequence[Row], count: int) -> list[tuple[list[dict[str, Any]], str]]:
    """Some conversations without their last answer, and that answer."""
    chats = [of_row(row) for row in found[:count]]
    return [(chat[:-1], str(chat[-1]["content"])) for chat in chats if len(chat) > 1]


def dataset(examples: Sequence[templates.Example], *, learnt: bool = True) -> "Dataset":
    """Examples as columns `input_ids`, `labels` and `row`; `row` is -1 where nothing is learnt from them."""
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "input_ids": [e.input_ids for e in examples],
            "labels": [e.labels for e in examples],
            ROW: list(range(len(examples))) if learnt else [-1] * len(examples),
        }
    )


def pack(found: TrainingData, packing: str, max_tokens: int) -> TrainingData:
    """The training rows filled up with several examples each; validation stays as it is.

    The column `row` then names the record of every token.
    """
    if packing == "none":
        return found
    from trl import pack_dataset

    spread = found.train.map(lambda one: {ROW: [one[ROW]] * len(one["input_ids"])})
    return replace(found, train=pack_dataset(spread, max_tokens, packing))
