"""Supervised fine-tuning of encoder-decoder models (T5), by transformers: TRL's trainer fails on them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

# Only a stage program loads this module, through run.py.
from transformers import (  # noqa: TID253
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from ftaas_pipelines.projects.method import Seq2Seq
from ftaas_pipelines.training import data as examples
from ftaas_pipelines.training import networks
from ftaas_pipelines.training.data import TrainingData
from ftaas_pipelines.training.materials import Materials

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, Trainer, TrainerCallback

TASK = "SEQ_2_SEQ_LM"
KEEP: tuple[str, ...] = ()
FIGURES: Mapping[str, str] = {}


def data(materials: Materials) -> TrainingData:
    """Sources and answers, each cut at `max_seq_tokens`."""
    return examples.load(materials)


def network(materials: Materials) -> "PreTrainedModel":
    return networks.language_model(materials)


def trainer(
    materials: Materials,
    model: "PreTrainedModel | PeftModel",
    data: TrainingData,
    arguments: dict[str, Any],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """A trainer over sources and answers; the loss is over every token of the answer."""
    method = materials.inputs.method
    assert isinstance(method, Seq2Seq)
    return Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            **arguments, prediction_loss_only=True, label_smoothing_factor=method.label_smoothing
        ),
        data_collator=DataCollatorForSeq2Seq(materials.tokenizer, model=model),
        train_dataset=data.train,
        eval_dataset=data.validation,  # pyright: ignore[reportArgumentType] None: no evaluation
        processing_class=materials.tokenizer,
        callbacks=callbacks,
    )
