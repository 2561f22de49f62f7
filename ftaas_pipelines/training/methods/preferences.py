"""Judged answers: what DPO, KTO, ORPO and reward models learn from, and what their trainers share.

TRL's trainers get token ids, made by `inference.templates`: prompt and answer are what is shown and taught
everywhere else, whatever TRL would make of the same text.
"""

import contextlib
import copy
import json
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.data.rows.messages import of_row
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.inference import templates
from ftaas_pipelines.projects.adapter import LoRA
from ftaas_pipelines.training import data as examples
from ftaas_pipelines.training.data import ROW, Row, TrainingData
from ftaas_pipelines.training.materials import Materials

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PAIRS = frozenset({"preference"})
LABELS = frozenset({"preference", "labelled"})
_MEANT = {
    PAIRS: "preferences: a chosen and a rejected answer to each prompt",
    LABELS: "judged answers: each labelled good or bad, or in pairs of chosen and rejected",
}
_REFERENCE = "ref"  # the name TRL gives the adapter it measures against


@dataclass(frozen=True)
class Judged:
    """One record as token ids.

    Attributes:
        row: its place in `TrainingData.record_ids`; -1 in validation.
        prompt: what the model is shown before it answers.
        answers: each with its end token, and whether it is good; of a pair, the chosen one first.
    """

    row: int
    prompt: list[int]
    answers: list[tuple[list[int], bool]]


Columns = Callable[[Sequence[Judged]], dict[str, list[Any]]]


def figures(names: Mapping[str, str]) -> dict[str, str]:
    """Names that a trainer logs, to ours, in training and (with `eval_` before both) in validation."""
    return {**names, **{f"eval_{theirs}": f"eval_{ours}" for theirs, ours in names.items()}}


FIGURES: Mapping[str, str] = figures(
    {
        "rewards/chosen": "reward_chosen",
        "rewards/rejected": "reward_rejected",
        "rewards/accuracies": "reward_accuracy",
        "rewards/margins": "reward_margin",
        "logps/chosen": "logp_chosen",
        "logps/rejected": "logp_rejected",
    }
)


def pairs(judged: Sequence[Judged]) -> dict[str, list[Any]]:
    """Columns `prompt_ids`, `chosen_ids` and `rejected_ids`; an answer ends with its end token."""
    return {
        "prompt_ids": [one.prompt for one in judged],
        "chosen_ids": [one.answers[0][0] for one in judged],
        "rejected_ids": [one.answers[1][0] for one in judged],
        ROW: [one.row for one in judged],
    }


def load(materials: Materials, kinds: frozenset[str], columns: Columns) -> TrainingData:
    """The training and validation splits as token ids.

    Args:
        kinds: of record that the method learns from: `PAIRS` or `LABELS`.
        columns: judged records to what the method's trainer wants, and the column `row`.

    Raises:
        InputInvalid: the base is not causal; a record is of another kind, has an answer without a token
            within `max_seq_tokens`, or two that are the same there; it is longer and the recipe refuses
            such. It names some of them.
    """
    from datasets import Dataset

    inputs = materials.inputs
    if inputs.family != "causal":
        raise InputInvalid(
            f"method {inputs.method.kind} compares answers of a causal base",
            "base_model",
            inputs.family,
            "choose a causal base",
        )
    train, validation = examples.both(materials)
    learnt, kept, cut = _judged(materials, train, "train.parquet", kinds)
    checked, rows, _ = _judged(materials, validation, "validation.parquet", kinds)
    good = [row for row, one in zip(rows, checked, strict=True) if one.answers[0][1]]
    return TrainingData(
        Dataset.from_dict(columns(learnt)),
        Dataset.from_dict(columns([Judged(-1, o.prompt, o.answers) for o in checked])) if checked else None,
        record_ids=[row["record_id"] for row in kept],
        truncated=cut,
        dropped=len(train) - len(kept),
        prompts=examples.prompts(good, inputs.training.samples),
    )


def _judged(
    materials: Materials, found: list[Row], where: str, kinds: frozenset[str]
) -> tuple[list[Judged], list[Row], int]:
    """Records within `max_seq_tokens` as tokens, the records themselves, and how many were cut short."""
    method, training = materials.inputs.method.kind, materials.inputs.training
    check(found, where, method, kinds)
    whole = [_tokens(materials.tokenizer, row) for row in found]
    limit = training.max_seq_tokens
    long = [any(len(prompt) + len(ids) > limit for ids, _ in answers) for prompt, answers in whole]
    keep = examples.within(found, long, where, training)
    found, cut = [found[i] for i in keep], sum(long[i] for i in keep)
    judged = [
        Judged(place, prompt, [(ids[: max(0, limit - len(prompt))], good) for ids, good in answers])
        for place, (prompt, answers) in enumerate(whole[i] for i in keep)
    ]
    ids = [row["record_id"] for row in found]
    empty = [id for id, one in zip(ids, judged, strict=True) if not all(a for a, _ in one.answers)]
    examples.check_answered(len(found), empty, where, limit)
    alike = [id for id, one in zip(ids, judged, strict=True) if _alike(one)]
    if alike:
        raise InputInvalid(
            f"{len(alike)} of {len(found)} records have two answers that are the same "
            f"within max_seq_tokens={limit}",
            where,
            examples.named(alike),
            "raise training.max_seq_tokens, or set training.too_long to drop",
        )
    return judged, found, cut


def check(found: list[Row], where: str, method: str, kinds: frozenset[str]) -> None:
    """Refuse records that hold no judgement, and what would be trained on otherwise than it is meant."""
    others = [row for row in found if row["kind"] not in kinds]
    if others:
        counted = Counter(row["kind"] for row in others).most_common()
        raise InputInvalid(
            f"method {method} learns from {_MEANT[kinds]}; {len(others)} of {len(found)} records are "
            f"something else ({', '.join(f'{count} {kind}' for kind, count in counted)})",
            where,
            examples.named([row["record_id"] for row in others]),
            "give the dataset a source of such records alone, or use method sft",
        )
    examples.check_kinds(found, where, method, labels=True)


def tokens(
    tokenizer: "PreTrainedTokenizerBase", before: Sequence[dict[str, Any]], answer: str
) -> tuple[list[int], list[int]]:
    """The prompt as a causal model is shown it, and the answer as it is taught behind it, end token included.

    Args:
        before: the conversation up to the answer.
    """
    said = templates.example(
        tokenizer, [*before, {"role": "assistant", "content": answer}], "causal", 1 << 30
    )
    end = len(said.labels)
    while said.labels[end - 1] == templates.IGNORED:  # what a template puts behind the end token
        end -= 1
    start = end
    while start and said.labels[start - 1] != templates.IGNORED:
        start -= 1
    return templates.prompt_ids(tokenizer, before, "causal"), said.labels[start:end]


def _tokens(tokenizer: "PreTrainedTokenizerBase", row: Row) -> tuple[list[int], list[tuple[list[int], bool]]]:
    *before, last = of_row(row)
    extra: dict[str, Any] = json.loads(row["extra"])
    answers = [(str(last["content"]), extra.get("label", True))]
    if "rejected" in extra:
        answers.append((extra["rejected"], False))
    encoded = [tokens(tokenizer, before, text) for text, _ in answers]
    return encoded[0][0], [(ids, good) for (_, ids), (_, good) in zip(encoded, answers, strict=True)]


def _alike(one: Judged) -> bool:
    return len(one.answers) > 1 and one.answers[0][0] == one.answers[1][0]


# -- trainers --------------------------------------------------------------------------------------


class Prepared:
    """Stands before a TRL trainer among a class's bases: the data is ready, and no model card is written."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: it would look for the base on the Hub."""
        return None

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def frozen(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel | None":
    """What a training of all weights is measured against: a copy of where it starts.

    TRL would read the base again, which is something else after `init_from`. None for an adapter: there the
    model itself can be had as it was (`reference`).
    """
    from peft import PeftModel

    if isinstance(model, PeftModel):
        return None
    copied = copy.deepcopy(model)
    copied.requires_grad_(False)
    return copied.eval()


@contextlib.contextmanager
def reference(materials: Materials, model: "PreTrainedModel | PeftModel") -> Generator[None]:
    """Around the making of a TRL trainer: what an adapter is measured against is where it starts.

    TRL copies the adapter as `ref`, the frozen weights of `init_from` (also after a resume: the copy is
    made before a checkpoint is read, and the one in the checkpoint is the same). Two things are set right:
    PiSSA and OLoRA would take the copy's first values out of the base a second time, and change it; and an
    adapter that starts as the base needs no copy, for TRL then switches the adapter off.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        yield
        return
    config: Any = model.peft_config["default"]
    adapter = materials.inputs.adapter
    assert isinstance(adapter, LoRA)
    asked, config.init_lora_weights = config.init_lora_weights, True
    try:
        yield
    finally:
        config.init_lora_weights = asked
    if materials.init_from is None and adapter.init == "default":
        model.delete_adapter(_REFERENCE)
