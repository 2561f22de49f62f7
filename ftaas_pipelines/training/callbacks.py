"""What happens while a training runs: figures go out, checkpoints are marked, and it can be stopped."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

# Only a stage program loads this module, through run.py.
from transformers import (  # noqa: TID253
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ftaas_pipelines.errors import FtaasError, Interrupted
from ftaas_pipelines.training import checkpoints, ranks
from ftaas_pipelines.training.guard import Guard
from ftaas_pipelines.training.planning.costs import Spending

# Names that go out, by the name the libraries give them.
FIGURES = {
    "loss": "loss",
    "eval_loss": "eval_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "mean_token_accuracy": "token_accuracy",
    "eval_mean_token_accuracy": "eval_token_accuracy",
}
PARTS = ("reward_", "eval_reward_")  # each grader's part of a reward: the recipe names them
SHARE = (0.08, 0.97)  # of the stage that lies before and up to the end of the steps


def named(log: dict[str, Any], more: Mapping[str, str] = MappingProxyType({})) -> dict[str, float]:
    """The figures of one log entry by our names.

    Args:
        more: figures of the method, as `methods.Method.FIGURES`.
    """
    found = {ours: float(log[name]) for name, ours in {**FIGURES, **more}.items() if name in log}
    return found | {name: float(value) for name, value in log.items() if name.startswith(PARTS)}


class Report(Protocol):
    """How a training speaks: see `ftaas_pipelines.stages.program.Report`."""

    def progress(self, done: float, message: str) -> None: ...

    def metrics(self, step: int, values: dict[str, float], trial: int | None = None) -> None: ...

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None: ...

    def trial(self, number: int, values: dict[str, Any], state: str, loss: float | None) -> None: ...


class Live(TrainerCallback):
    """Sends the figures of each log: loss, rates, tokens per second, time to go; keeps them too.

    Raises (out of `Trainer.train`):
        FtaasError: the loss is no longer a number.
    """

    def __init__(self, report: Report, figures: Mapping[str, str] = MappingProxyType({})):
        self._report, self._figures = report, figures
        self._started = self._last = (0, 0.0, 0)  # step, time, tokens

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._started = self._last = (state.global_step, time.monotonic(), state.num_input_tokens_seen)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        values = named(logs or {}, self._figures)
        loss = values.get("loss", values.get("eval_loss"))
        if loss is None:  # the summary at the end
            return
        if not math.isfinite(loss):
            raise FtaasError(
                "the training diverged: its loss is no longer a number",
                f"step {state.global_step}",
                str(loss),
                "lower training.learning_rate, or add warmup_steps",
            )
        if "loss" in values:
            values |= self._pace(state)
        self._report.metrics(state.global_step, {k: v for k, v in values.items() if math.isfinite(v)})
        done = state.global_step / state.max_steps
        name = "loss" if "loss" in values else "validation loss"
        self._report.progress(
            SHARE[0] + (SHARE[1] - SHARE[0]) * done,
            f"step {state.global_step} of {state.max_steps}, {name} {loss:.3f}"
            + (f", {values['eta_seconds']:.0f} s to go" if "eta_seconds" in values else ""),
        )

    def _pace(self, state: TrainerState) -> dict[str, float]:
        now = (state.global_step, time.monotonic(), state.num_input_tokens_seen)
        since, self._last = self._last, now
        per_step = (now[1] - self._started[1]) / max(1, now[0] - self._started[0])
        return {
            "tokens_per_second": (now[2] - since[2]) / max(1e-9, now[1] - since[1]),
            "eta_seconds": per_step * (state.max_steps - now[0]),
        }


class Watch(TrainerCallback):
    """Lets no checkpoint be written after a loss that is no number: the last good one stays the newest."""

    def __init__(self) -> None:
        self.guard: Guard | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.guard and (control.should_save or control.should_log or state.global_step >= state.max_steps):
            self.guard.check()


class Stop(TrainerCallback):
    """Ends a training between two steps, with a checkpoint: on a signal, or when its budget is used up.

    Attributes:
        reason: why it was stopped; None while it runs, and when it came to its end.
    """

    def __init__(self, spending: Spending):
        self.reason: Literal["signal", "budget"] | None = None
        self.spending = spending
        self._asked = False

    @property
    def seconds(self) -> float:
        """Training time spent so far, over all attempts."""
        return self.spending.seconds

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            return
        spent = self.spending.reached()
        # A signal reaches the ranks at different steps, and their clocks differ: they stop together.
        asked, spent = ranks.highest([int(self._asked), int(spent)])
        if asked:
            self.reason = "signal"
        elif spent:
            self.reason = "budget"
        if self.reason:
            control.should_save = control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        assert args.output_dir is not None
        ranks.together()  # each rank writes the state of its random numbers
        if not ranks.first():
            return
        checkpoints.mark(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.seconds)

    @contextlib.contextmanager
    def listening(self) -> Generator[None]:
        """Take SIGTERM and SIGINT as a wish to stop after this step; a second one stops at once.

        An exception raised in the middle of an optimizer step would leave weights and optimizer
        apart; so the handlers of the stage program rest meanwhile.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            signal.signal(number, self._ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, _: Any) -> None:
        if self._asked:
            raise Interrupted(f"stopped by {signal.Signals(number).name}", do="run the same command to go on")
        self._asked = True
