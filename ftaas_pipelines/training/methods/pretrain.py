"""Continued pre-training of causal models: every token of plain texts, by the trainer of `sft`."""

from collections.abc import Sequence
from typing import Any

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.training import data as examples
from ftaas_pipelines.training.data import TrainingData
from ftaas_pipelines.training.materials import Materials
from ftaas_pipelines.training.methods import sft

TASK, KEEP, FIGURES = sft.TASK, sft.KEEP, sft.FIGURES
network, trainer = sft.network, sft.trainer


def data(materials: Materials) -> TrainingData:
    """Texts from their first token to their end, packed. Wrapped rows go on with a text where the last ended.

    Raises:
        InputInvalid: a record is no plain text.
    """
    packing = sft.packing(materials)
    train, validation = examples.both(materials)
    for found, where in ((train, "train.parquet"), (validation, "validation.parquet")):
        _check_texts(found, where)
    found = examples.load(materials, whole=packing == "wrapped")
    return examples.pack(found, packing, materials.inputs.training.max_seq_tokens)


def _check_texts(found: Sequence[dict[str, Any]], where: str) -> None:
    """Refuse conversations: loss on all of one would teach the model to write its user's questions."""
    others = [row["record_id"] for row in found if row["kind"] != "text"]
    if others:
        raise InputInvalid(
            f"method pretrain learns plain texts, and {len(others)} of {len(found)} records are none",
            where,
            examples.named(others),
            "use method sft, which learns the answers of conversations and the whole of texts beside them, "
            "or give the sources format: text",
        )
