"""Supervised fine-tuning of encoder-decoder models (T5), by transformers: TRL's trainer fails on them."""

from typing import TYPE_CHECKING, Any

# Only a stage program loads this module, through run.py.
from transformers import (  # noqa: TID253
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from ftaas_pipelines.training.data import TrainingData

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback


def trainer(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    data: TrainingData,
    arguments: dict[str, Any],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """A trainer over sources and answers; the loss is over every token of the answer."""
    return Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**arguments, prediction_loss_only=True),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        train_dataset=data.train,
        eval_dataset=data.validation,  # pyright: ignore[reportArgumentType] None: no evaluation
        processing_class=tokenizer,
        callbacks=callbacks,
    )
