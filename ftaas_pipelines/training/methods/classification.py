"""Sequence classification: a head that names one of a few labels, on the last token of the prompt.

The prompt is what `inference.templates` shows before an answer, so the label takes an answer's place. The
head of transformers' `…ForSequenceClassification` has no bias and reads the last token that is no padding.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

# Only a stage program loads this module, through run.py.
import torch  # noqa: TID253
from transformers import (  # noqa: TID253
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from ftaas_pipelines.data.rows.messages import of_row
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.inference import templates
from ftaas_pipelines.projects.method import Classification
from ftaas_pipelines.training import data as examples
from ftaas_pipelines.training import networks
from ftaas_pipelines.training.data import ROW, Row, TrainingData
from ftaas_pipelines.training.materials import Materials

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, TrainerCallback

TASK = "SEQ_CLS"
KEEP: tuple[str, ...] = ("score",)
FIGURES: Mapping[str, str] = {"eval_accuracy": "eval_accuracy"}


def data(materials: Materials) -> TrainingData:
    """Prompts and the places of their labels. Validation leaves out labels that training does not know.

    A prompt that is too long loses its beginning: the head reads its last token.

    Raises:
        InputInvalid: the answers are no labels, a record has no question, or the base is no causal one.
    """
    inputs = materials.inputs
    if inputs.family != "causal":
        raise InputInvalid(
            "method classification reads the last token of a causal base",
            "base_model",
            inputs.family,
            "choose a causal base, or method seq2seq, which writes the label",
        )
    train, validation = examples.both(materials)
    for found, where in ((train, "train.parquet"), (validation, "validation.parquet")):
        examples.check_kinds(found, where, inputs.method.kind)
        _check_asked(found, where)
    known = labels(materials)
    place = {label: i for i, label in enumerate(known)}
    validation = [row for row in validation if row["answer"] in place]
    learnt, kept, cut = _prompts(train, materials, "train.parquet")
    checked, among, _ = _prompts(validation, materials, "validation.parquet")
    return TrainingData(
        _dataset(learnt, [place[row["answer"]] for row in kept], range(len(kept))),
        _dataset(checked, [place[row["answer"]] for row in among], [-1] * len(among)) if checked else None,
        record_ids=[row["record_id"] for row in kept],
        truncated=cut,
        dropped=len(train) - len(kept),
    )


def labels(materials: Materials) -> list[str]:
    """The different answers of the training split, sorted.

    Raises:
        InputInvalid: they are free text, or there is but one.
    """
    method = materials.inputs.method
    assert isinstance(method, Classification)
    answers = [str(row["answer"]) for row in examples.learnt_from(materials)]
    counts = Counter(answers)
    rare = ", ".join(repr(answer[:60]) for answer, _ in counts.most_common()[::-1][:3])
    if len(counts) > method.max_labels or len(counts) == len(answers) > 1:
        raise InputInvalid(
            f"{len(counts)} different answers in {len(answers)} records are free text, no labels",
            "train.parquet",
            rare,
            f"use method sft, or raise method.max_labels ({method.max_labels}) if each is a label of its own "
            "with several records",
        )
    if len(counts) < 2:
        raise InputInvalid(
            "all records have the same answer: there is nothing to tell apart", "train.parquet", rare
        )
    return sorted(counts)


def network(materials: Materials) -> "PreTrainedModel":
    known = labels(materials)
    return networks.language_model(
        materials,
        AutoModelForSequenceClassification,
        num_labels=len(known),
        id2label=dict(enumerate(known)),
        label2id={label: i for i, label in enumerate(known)},
        pad_token_id=materials.tokenizer.pad_token_id,
    )


def trainer(
    materials: Materials,
    model: "PreTrainedModel | PeftModel",
    data: TrainingData,
    arguments: dict[str, Any],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """A trainer over prompts and labels; the loss is the cross-entropy of the label."""
    method = materials.inputs.method
    assert isinstance(method, Classification)
    weights = _balanced(data.train["label"][:]) if method.balance else None
    return Trainer(
        model=model,
        args=TrainingArguments(**arguments, label_names=["labels"]),
        data_collator=DataCollatorWithPadding(materials.tokenizer),
        train_dataset=data.train,
        eval_dataset=data.validation,  # pyright: ignore[reportArgumentType] None: no evaluation
        processing_class=materials.tokenizer,
        compute_loss_func=_loss(model, weights),
        compute_metrics=_accuracy,
        preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1),
        callbacks=callbacks,
    )


def _check_asked(found: Sequence[Row], where: str) -> None:
    silent = [row["record_id"] for row in found if row["kind"] == "text"]
    if silent:
        raise InputInvalid(
            f"{len(silent)} of {len(found)} records are plain texts: they have no label",
            where,
            examples.named(silent),
            "give each text as a question whose answer is its label",
        )


def _prompts(found: list[Row], materials: Materials, where: str) -> tuple[list[list[int]], list[Row], int]:
    """Prompt tokens within `max_seq_tokens`, their records, and how many lost their beginning."""
    training, tokenizer = materials.inputs.training, materials.tokenizer
    limit = training.max_seq_tokens
    whole = [templates.prompt_ids(tokenizer, of_row(row)[:-1], "causal") for row in found]
    long = [len(ids) > limit for ids in whole]
    keep = examples.within(found, long, where, training)
    if any(whole[i][-1] == tokenizer.pad_token_id for i in keep):
        raise InputInvalid(
            "the prompt ends with the padding token, which the head cannot tell from padding",
            "base_model",
            str(tokenizer.pad_token),
            "give the tokenizer a padding token of its own",
        )
    return [whole[i][-limit:] for i in keep], [found[i] for i in keep], sum(long[i] for i in keep)


def _dataset(prompts: list[list[int]], places: list[int], rows: Sequence[int]) -> "Dataset":
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": prompts, "label": places, ROW: list(rows)})


def _balanced(places: Sequence[int]) -> "torch.Tensor":
    """A weight for each label, `[labels]`: inverse frequency, with mean 1 over the examples."""
    counts = torch.bincount(torch.tensor(places))
    return len(places) / (len(counts) * counts.clamp(min=1).float())


def _loss(model: Any, weights: "torch.Tensor | None") -> "Callable[..., torch.Tensor]":
    """The loss for the trainer: of logits `[rows, labels]` and labels `[rows]`; validation is not weighed."""

    def loss(outputs: Any, wanted: "torch.Tensor", num_items_in_batch: Any = None) -> "torch.Tensor":
        each = torch.nn.functional.cross_entropy(outputs.logits.float(), wanted, reduction="none")
        if weights is not None and model.training:
            each = each * weights.to(each.device)[wanted]
        return each.mean() if num_items_in_batch is None else each.sum() / num_items_in_batch

    return loss


def _accuracy(said: Any) -> dict[str, float]:
    return {"accuracy": float((said.predictions == said.label_ids).mean())}
