"""Direct preference optimisation (Rafailov et al. 2023), by TRL: chosen answers up, rejected ones down."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

# Only a stage program loads this module, through run.py.
from trl import DPOConfig, DPOTrainer  # noqa: TID253

from ftaas_pipelines.projects.method import Dpo
from ftaas_pipelines.training import networks
from ftaas_pipelines.training.data import TrainingData
from ftaas_pipelines.training.materials import Materials
from ftaas_pipelines.training.methods import preferences

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, Trainer, TrainerCallback

TASK = "CAUSAL_LM"
KEEP: tuple[str, ...] = ()
FIGURES: Mapping[str, str] = preferences.FIGURES


class PreferenceTrainer(preferences.Prepared, DPOTrainer):
    """DPOTrainer over our tokens."""


def data(materials: Materials) -> TrainingData:
    """Pairs of answers, chosen and rejected."""
    return preferences.load(materials, preferences.PAIRS, preferences.pairs)


def network(materials: Materials) -> "PreTrainedModel":
    return networks.language_model(materials)


def trainer(
    materials: Materials,
    model: "PreTrainedModel | PeftModel",
    data: TrainingData,
    arguments: dict[str, Any],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """A trainer that measures against where it starts: the base, or the adapter in `init_from`.

    Dropout is off, whatever the adapter says: it would stand between the two as noise.
    """
    method = materials.inputs.method
    assert isinstance(method, Dpo)
    config = DPOConfig(
        **arguments,
        beta=method.beta,
        loss_type=[method.loss],
        label_smoothing=method.label_smoothing,
        max_length=None,
        disable_dropout=True,
    )
    with preferences.reference(materials, model):
        return PreferenceTrainer(
            model=model,
            ref_model=preferences.frozen(model),
            args=config,
            train_dataset=data.train,
            eval_dataset=data.validation,
            processing_class=materials.tokenizer,
            callbacks=callbacks,
        )
