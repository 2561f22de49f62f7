"""Supervised fine-tuning of causal models, by TRL."""

from typing import TYPE_CHECKING, Any

# Only a stage program loads this module, through run.py.
from transformers import Trainer  # noqa: TID253
from trl import SFTConfig, SFTTrainer  # noqa: TID253

from ftaas_pipelines.training.data import TrainingData

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback


class _AnswerTrainer(SFTTrainer):
    """SFTTrainer whose checkpoints hold no model card (it would look for one on the Hub)."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        return None

    def compute_loss(
        self, model: "PreTrainedModel | PeftModel", inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Mean cross-entropy of the answer tokens.

        Without Triton, TRL's fused head scores every position, and its entropy: half of a step on a
        CPU; the model's own loss is the same number. Padding stands on the right, where a causal
        model never looks, so the mask that would cost attention its fast path is left out.
        """
        if model.device.type != "cpu":
            return super().compute_loss(model, inputs, *args, **kwargs)
        inputs = {name: value for name, value in inputs.items() if name != "attention_mask"}
        return Trainer.compute_loss(self, model, {**inputs, "use_cache": False}, *args, **kwargs)


def trainer(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    data: TrainingData,
    arguments: dict[str, Any],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """A trainer over examples that are tokenized and labelled already (loss on answers only).

    Doing that ourselves keeps one template for training and serving, names records that lost their
    answer, and spares TRL's three passes of `Dataset.map`.
    """
    config = SFTConfig(
        **arguments,
        max_length=None,
        packing=False,
        activation_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return _AnswerTrainer(
        model=model,
        args=config,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
