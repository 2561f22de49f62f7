"""Reward models, by TRL: a head that scores answers, learnt from preferences (Bradley-Terry).

What it makes answers nothing: `training.reward_model` loads it as a function from conversations to scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

# Only a stage program loads this module, through run.py.
from transformers import AutoModelForSequenceClassification  # noqa: TID253
from trl import RewardConfig, RewardTrainer  # noqa: TID253

from ftaas_pipelines.projects.method import Reward
from ftaas_pipelines.training import networks
from ftaas_pipelines.training.data import ROW, TrainingData
from ftaas_pipelines.training.materials import Materials
from ftaas_pipelines.training.methods import preferences

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, Trainer, TrainerCallback

TASK = "SEQ_CLS"
KEEP: tuple[str, ...] = ("score",)
FIGURES: Mapping[str, str] = preferences.figures(
    {"accuracy": "reward_accuracy", "margin": "reward_margin", "mean_reward": "score"}
)


class ScoreTrainer(preferences.Prepared, RewardTrainer):
    """RewardTrainer over our tokens."""


def data(materials: Materials) -> TrainingData:
    """Pairs of conversations, with the chosen and with the rejected answer; it cannot answer samples."""
    return replace(preferences.load(materials, preferences.PAIRS, whole), prompts=())


def whole(judged: Sequence[preferences.Judged]) -> dict[str, list[Any]]:
    """Columns `chosen_ids` and `rejected_ids`, each prompt and answer, and `row`."""
    return {
        "chosen_ids": [one.prompt + one.answers[0][0] for one in judged],
        "rejected_ids": [one.prompt + one.answers[1][0] for one in judged],
        ROW: [one.row for one in judged],
    }


def network(materials: Materials) -> "PreTrainedModel":
    """The base with a new head in place of its output layer; the random state decides its first values."""
    return networks.language_model(materials, AutoModelForSequenceClassification, num_labels=1)


def trainer(
    materials: Materials,
    model: "PreTrainedModel | PeftModel",
    data: TrainingData,
    arguments: dict[str, Any],
    callbacks: "list[TrainerCallback]",
) -> "Trainer":
    """A trainer on pairs; dropout is the adapter's own."""
    method = materials.inputs.method
    assert isinstance(method, Reward)
    config = RewardConfig(
        **arguments,
        center_rewards_coefficient=method.center_coefficient,
        max_length=None,
        disable_dropout=False,
    )
    return ScoreTrainer(
        model=model,
        args=config,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=materials.tokenizer,
        callbacks=callbacks,
    )
