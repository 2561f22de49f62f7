"""Group relative policy optimisation, by TRL: answers that are better than their group become likelier."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

# Only a stage program loads this module, through run.py.
from trl import GRPOConfig, GRPOTrainer  # noqa: TID253

from ftaas_pipelines.metrics.graders import Panel
from ftaas_pipelines.projects.method import Grpo
from ftaas_pipelines.training import networks
from ftaas_pipelines.training.data import TrainingData
from ftaas_pipelines.training.materials import Materials
from ftaas_pipelines.training.methods import online

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, TrainerCallback

TASK = "CAUSAL_LM"
KEEP: tuple[str, ...] = ()
FIGURES: Mapping[str, str] = online.FIGURES


class GroupTrainer(online.Rewarded, GRPOTrainer):
    """GRPOTrainer with our prompts, order and seeds."""


def data(materials: Materials) -> TrainingData:
    """Prompts, and what is expected of their answers."""
    return online.data(materials)


def network(materials: Materials) -> "PreTrainedModel":
    return networks.language_model(materials)


def trainer(
    materials: Materials,
    model: "PreTrainedModel | PeftModel",
    data: TrainingData,
    arguments: dict[str, Any],
    callbacks: "list[TrainerCallback]",
) -> "GroupTrainer":
    """A trainer over prompts; answers are sampled and graded at each step.

    The reference of the KL divergence is what the training starts from: the base, or the adapter in
    `init_from`. Dropout is off: the answers are to come from the model itself.
    """
    method = materials.inputs.method
    assert isinstance(method, Grpo)
    panel = Panel(method.rewards, materials.code)
    rewards: list[Any] = [online.Part(panel, number) for number in range(len(panel.names))]
    config = GRPOConfig(
        **online.arguments(arguments),
        num_generations=method.generations,
        num_generations_eval=1,
        max_completion_length=method.max_new_tokens,
        temperature=method.temperature,
        beta=method.beta,
        loss_type=method.loss,
        # "Dr. GRPO" leaves the scaling out, too: it favours prompts that are nearly always or never answered.
        scale_rewards="none" if method.loss == "dr_grpo" else "group",
        reward_weights=panel.weights,
        disable_dropout=True,
    )
    made = GroupTrainer(
        model=model,
        reward_funcs=rewards,
        args=config,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=materials.tokenizer,
        callbacks=callbacks,
    )
    made.begin(method.generations)
    return made
