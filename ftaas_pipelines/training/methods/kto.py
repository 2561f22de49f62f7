"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024), by TRL: single answers, each good or bad."""

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

# Only a stage program loads this module, through run.py.
from trl import KTOConfig, KTOTrainer  # noqa: TID253

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects.method import Kto
from ftaas_pipelines.training import networks
from ftaas_pipelines.training.data import ROW, TrainingData
from ftaas_pipelines.training.materials import Materials
from ftaas_pipelines.training.methods import preferences

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, Trainer, TrainerCallback

TASK = "CAUSAL_LM"
KEEP: tuple[str, ...] = ()
FIGURES: Mapping[str, str] = {**preferences.FIGURES, **preferences.figures({"kl": "kl"})}


class JudgedTrainer(preferences.Prepared, KTOTrainer):
    """KTOTrainer over our tokens."""


def data(materials: Materials) -> TrainingData:
    """Single answers with a label each; a pair is a good answer and a bad one.

    Raises:
        InputInvalid: as `preferences.load`; and where all answers are of one label, or stand alone in their
            batch: the divergence is estimated on prompts with a neighbour's answer.
    """
    training = materials.inputs.training
    if training.batch_size < 2:
        raise InputInvalid(
            "method kto compares the answers of a batch with each other",
            "recipes.training.batch_size",
            str(training.batch_size),
            "use 2 or more, with less gradient_accumulation",
        )

    def columns(judged: Sequence[preferences.Judged]) -> dict[str, list[Any]]:
        return answers(judged, training.batch_size, training.seed)

    found = preferences.load(materials, preferences.LABELS, columns)
    labels = set(found.train["label"])
    if len(labels) < 2:
        only = "good" if True in labels else "bad"
        raise InputInvalid(
            "method kto learns from good and from bad answers",
            "train.parquet",
            f"{len(found.train)} answers, all {only}",
            "add answers of the other label" + (", or use method sft" if only == "good" else ""),
        )
    return found


def answers(judged: Sequence[preferences.Judged], batch: int, seed: int) -> dict[str, list[Any]]:
    """Columns `prompt_ids`, `completion_ids`, `KL_completion_ids`, `label` and `row`, in training's order.

    That order is drawn here, and is the same in each epoch: `KL_completion_ids` is the answer of the
    neighbour in the batch. In the order of the records the answers of a pair would be neighbours, and the
    divergence would be taken on an answer to the prompt itself.
    """
    drawn = [(one, ids, good) for one in judged for ids, good in one.answers]
    random.Random(seed).shuffle(drawn)
    said = [ids for _, ids, _ in drawn]
    others = [ids for i in range(0, len(said), batch) for ids in _turned(said[i : i + batch])]
    if len(said) > 1 and len(said) % batch == 1:  # alone in the last batch
        others[-1] = said[-2]
    return {
        "prompt_ids": [one.prompt for one, _, _ in drawn],
        "completion_ids": said,
        "KL_completion_ids": others,
        "label": [good for _, _, good in drawn],
        ROW: [one.row for one, _, _ in drawn],
    }


def _turned(said: list[list[int]]) -> list[list[int]]:
    return [said[-1], *said[:-1]]


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
    assert isinstance(method, Kto)
    config = KTOConfig(
        **arguments,
        beta=method.beta,
        desirable_weight=method.desirable_weight,
        undesirable_weight=method.undesirable_weight,
        max_length=None,
        disable_dropout=True,
    )
    with preferences.reference(materials, model):
        return JudgedTrainer(
            model=model,
            ref_model=preferences.frozen(model),
            args=config,
            train_dataset=data.train,
            eval_dataset=data.validation,
            processing_class=materials.tokenizer,
            callbacks=callbacks,
        )
