"""Supervised fine-tuning of causal models, by TRL; `pretrain` learns plain texts the same way."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

# Only a stage program loads this module, through run.py.
from transformers import Trainer  # noqa: TID253
from trl import SFTConfig, SFTTrainer  # noqa: TID253

from ftaas_pipelines.projects.method import Packing, Pretrain, Sft
from ftaas_pipelines.training import data as examples
from ftaas_pipelines.training import networks
from ftaas_pipelines.training.data import TrainingData
from ftaas_pipelines.training.materials import Materials

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, TrainerCallback

TASK = "CAUSAL_LM"
KEEP: tuple[str, ...] = ()
FIGURES: Mapping[str, str] = {}


class AnswerTrainer(SFTTrainer):
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
        if self.accelerator.device.type != "cpu":
            return super().compute_loss(model, inputs, *args, **kwargs)
        inputs = {name: value for name, value in inputs.items() if name != "attention_mask"}
        return Trainer.compute_loss(self, model, {**inputs, "use_cache": False}, *args, **kwargs)


def data(materials: Materials) -> TrainingData:
    """Conversations with loss on their answers, plain texts with loss on all of it; packed where asked."""
    return examples.pack(
        examples.load(materials), packing(materials), materials.inputs.training.max_seq_tokens
    )


def network(materials: Materials) -> "PreTrainedModel":
    return networks.language_model(materials)


def trainer(
    materials: Materials,
    model: "PreTrainedModel | PeftModel",
    data: TrainingData,
    arguments: dict[str, Any],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """A trainer over examples that are tokenized and labelled already (loss on answers only).

    Doing that ourselves keeps one template for training and serving, names records that lost their
    answer, and spares TRL's three passes of `Dataset.map`.
    """
    packed = packing(materials)
    method = materials.inputs.method
    config = SFTConfig(
        **arguments,
        max_length=None,
        packing=packed != "none",
        packing_strategy="bfd" if packed == "none" else packed,
        padding_free=isinstance(method, Sft) and method.padding_free,
        eval_packing=False,
        activation_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return AnswerTrainer(
        model=model,
        args=config,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=materials.tokenizer,
        callbacks=callbacks,
    )


def packing(materials: Materials) -> Packing:
    method = materials.inputs.method
    assert isinstance(method, Sft | Pretrain)
    return method.packing
