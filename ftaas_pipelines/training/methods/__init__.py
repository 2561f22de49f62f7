"""How each method learns: one module a method, all of the same shape. Only a stage program loads them.

A module says which figures it logs, reads its examples, loads the network that learns, and makes the
trainer. Seeds, adapters, checkpoints, budgets and saving are the same for all: `training.run`.
"""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from ftaas_pipelines.training.data import TrainingData
from ftaas_pipelines.training.inputs import TrainInputs
from ftaas_pipelines.training.materials import Materials

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, Trainer, TrainerCallback


class Method(Protocol):
    """One way to learn.

    Attributes:
        TASK: PEFT's task type of the adapter.
        KEEP: modules trained and kept whole beside the adapter (a new head).
        FIGURES: names that its trainer logs, to ours; those of `callbacks.FIGURES` need not be repeated.
    """

    TASK: str
    KEEP: tuple[str, ...]
    FIGURES: Mapping[str, str]

    def data(self, materials: Materials) -> TrainingData:
        """The examples it learns from, in the order of their record ids.

        Raises:
            InputInvalid: there are none that it can learn from; it names some records.
        """
        ...

    def network(self, materials: Materials) -> "PreTrainedModel":
        """The network that learns, before any adapter is attached."""
        ...

    def trainer(
        self,
        materials: Materials,
        model: "PreTrainedModel | PeftModel",
        data: TrainingData,
        arguments: dict[str, Any],
        callbacks: "list[TrainerCallback]",
    ) -> "Trainer":
        """The trainer, ready to go; `arguments` are those that all methods share (`run.arguments`)."""
        ...


def of(inputs: TrainInputs) -> Method:
    """The module of a method."""
    return cast(Method, importlib.import_module(f"ftaas_pipelines.training.methods.{inputs.method.kind}"))
