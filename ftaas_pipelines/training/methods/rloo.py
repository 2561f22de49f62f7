"""Reinforcement learning from human feedback: REINFORCE leave-one-out with a learned reward model, by TRL."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

# Only a stage program loads this module, through run.py.
from trl import RLOOConfig, RLOOTrainer  # noqa: TID253

from ftaas_pipelines.metrics.graders import Panel
from ftaas_pipelines.projects.method import Rloo
from ftaas_pipelines.training import networks, reward_model
from ftaas_pipelines.training.data import TrainingData
from ftaas_pipelines.training.materials import Materials
from ftaas_pipelines.training.methods import online
from ftaas_pipelines.training.reward_model import RewardModel

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, TrainerCallback

TASK = "CAUSAL_LM"
KEEP: tuple[str, ...] = ()
FIGURES: Mapping[str, str] = online.FIGURES


class Scored:
    """A reward model as TRL calls a reward: it reads the tokens that were sampled, end token and all."""

    __name__ = "model"  # its figure is reward_model

    def __init__(self, scorer: RewardModel):
        self._scorer = scorer

    def __call__(self, prompts: list[list[int]], completion_ids: list[list[int]], **_: Any) -> list[float]:
        return self._scorer.scores(
            [prompt + answer for prompt, answer in zip(prompts, completion_ids, strict=True)]
        )


class LeaveOneOutTrainer(online.Rewarded, RLOOTrainer):
    """RLOOTrainer with our prompts, order and seeds."""


def data(materials: Materials) -> TrainingData:
    """Prompts; answers count only where a grader compares with them."""
    return online.data(materials)


def network(materials: Materials) -> "PreTrainedModel":
    return networks.language_model(materials)


def trainer(
    materials: Materials,
    model: "PreTrainedModel | PeftModel",
    data: TrainingData,
    arguments: dict[str, Any],
    callbacks: "list[TrainerCallback]",
) -> "LeaveOneOutTrainer":
    """A trainer over prompts; answers are sampled and scored at each step.

    The reward is lessened by the KL divergence from what the training starts from: the base, or the adapter
    in `init_from`. Dropout is off: the answers are to come from the model itself.
    """
    method = materials.inputs.method
    assert isinstance(method, Rloo)
    panel = Panel(method.rewards, materials.code)
    learned = materials.reward_model
    config = RLOOConfig(
        **online.arguments(arguments),
        num_generations=method.generations,
        num_generations_eval=1,
        max_completion_length=method.max_new_tokens,
        temperature=method.temperature,
        beta=method.beta,
        reward_weights=[*([1.0] if learned else []), *panel.weights],
        disable_dropout=True,
    )
    rewards: list[Any] = [online.Part(panel, number) for number in range(len(panel.names))]
    if learned:
        rewards = [Scored(reward_model.load(materials.base, learned, config.device)), *rewards]
    made = LeaveOneOutTrainer(
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
