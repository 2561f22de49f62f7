"""Ends a trial of a sweep early, once it is worse than the median of the finished ones at the same step."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

# Only a stage program loads this module, through sweep.py.
from transformers import (  # noqa: TID253
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)


class Pruning(TrainerCallback):
    """The median rule (Golovin et al., Google Vizier, 2017), as Optuna's MedianPruner has it.

    Args:
        losses: gets the trial's validation loss by step; those before an interruption are put back.
        finished: the same of the trials that came to their end; none: nothing is ended early.
    """

    def __init__(self, losses: dict[int, float], finished: Sequence[Mapping[int, float]]):
        self._losses, self._finished = losses, finished
        self.pruned = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        for entry in state.log_history:
            if "eval_loss" in entry:
                self._losses[int(entry["step"])] = float(entry["eval_loss"])

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        step = state.global_step
        self._losses[step] = float((metrics or {})["eval_loss"])
        others = [min(v for s, v in one.items() if s <= step) for one in self._finished if min(one) <= step]
        own = min(v for s, v in self._losses.items() if s <= step)
        if others and own > median(others) and step < state.max_steps:
            self.pruned = control.should_training_stop = True
