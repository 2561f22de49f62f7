"""The quote of a training that begins: settled by the probe before step 1, or by its first steps."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Only a stage program loads this module, through run.py.
from transformers import (  # noqa: TID253
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ftaas_pipelines.errors import Refused
from ftaas_pipelines.training import machine, ranks
from ftaas_pipelines.training.materials import Materials
from ftaas_pipelines.training.planning import duration, energy, held, probe, quote
from ftaas_pipelines.training.planning import job as jobs
from ftaas_pipelines.training.planning.costs import UNITS, Costs, Spending
from ftaas_pipelines.training.planning.figure import Figure
from ftaas_pipelines.training.planning.job import Job
from ftaas_pipelines.training.planning.lengths import Lengths, of_columns
from ftaas_pipelines.training.planning.quote import Quote

if TYPE_CHECKING:
    from transformers import Trainer

    from ftaas_pipelines.training.callbacks import Report
    from ftaas_pipelines.training.data import TrainingData
    from ftaas_pipelines.training.guard import Guard
    from ftaas_pipelines.training.supervision import Proof

# Learning from answers that are sampled on the way, a batch cannot be tried beforehand: so many steps tell.
SAMPLED = (*jobs.ONLINE, "distillation")
_FIRST_STEPS = 4  # the first of them is left out: libraries choose their kernels in it


class Settle(TrainerCallback):
    """Settles the quote, holds it against the budget, and keeps what was really spent.

    Attributes:
        quote: as it stands.
        spending: what the training has spent, over all attempts.

    Raises (out of `Trainer.train`, before step 1):
        Refused: the probe shows that the budget does not cover it.
    """

    def __init__(self, job: Job, found: Quote, spending: Spending, work: Path, report: "Report"):
        self.job, self.quote, self.spending = job, found, spending
        self._work, self._report = work, report
        self._trainer: Trainer | None = None
        self._guard: Guard | None = None
        self._rehearse: Callable[[Any], float] | None = None
        self._refused: Refused | None = None
        self._peak_before = 0.0
        self._probed: probe.Probed | None = None
        self._ended: list[float] = []  # when each of the first steps ended

    def attach(
        self, trainer: "Trainer", guard: "Guard", rehearse: Callable[[Any], float] | None = None
    ) -> None:
        """Name the trainer, once it is made.

        Args:
            rehearse: gives the seconds of one round of sampled answers.
        """
        self._trainer, self._guard, self._rehearse = trainer, guard, rehearse

    @property
    def _sampled(self) -> bool:
        return self.job.method.kind in SAMPLED

    @property
    def _peak_gib(self) -> float:
        """Peak memory up to now: of loading, and of the training without its probe."""
        return max(self._peak_before, held.peak_gib(self.job.device))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._peak_before = held.peak_gib(self.job.device)
        if self._sampled:
            return
        assert self._trainer is not None and self._guard is not None, "attach() first"
        with self._guard.aside():
            self._probed = probed = probe.probe(self._trainer, self._work, _machine(), self._rehearse)
        self._settle(probed.seconds(self._trainer, duration.saving_s(self.job)), probed.gib)
        quote.check(self.quote, self.spending.costs.bounds)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self._sampled or self.quote.basis == "probed":
            return
        self._ended.append(time.monotonic())
        if len(self._ended) < _FIRST_STEPS:
            return
        each = (self._ended[-1] - self._ended[0]) / (len(self._ended) - 1)
        self._settle(self.spending.seconds + each * (state.max_steps - state.global_step), self._peak_gib)
        try:
            quote.check(self.quote, self.spending.costs.bounds)
        except Refused as refusal:
            if state.global_step < state.max_steps:
                saved = f"; a checkpoint of step {state.global_step} was saved"
                self._refused = Refused([replace(p, what=p.what + saved) for p in refusal.problems])
                control.should_save = control.should_training_stop = True

    def _settle(self, seconds: float, gib: float) -> None:
        # In whole milliseconds and KiB, the highest of all ranks: they must come to one answer.
        high = ranks.highest([round(seconds * 1000), round(gib * 2**20)])
        self.quote = self.quote.settled(
            Figure.within(high[0] / 1000, quote.PROBED_SECONDS),
            Figure.within(high[1] / 2**20, quote.PROBED_MEMORY),
        )
        self._report.progress(0.08, f"quote: {self.quote}")

    def end(self) -> None:
        """The training came to its end, or was stopped.

        Raises:
            Refused: its first steps showed that the budget does not cover it; a checkpoint was saved.
        """
        self.spending.close()
        if self._refused:
            raise self._refused

    def used_up(self, saved: str) -> Refused:
        """The error of a budget that broke on the way."""
        name = self.spending.broken or "training_minutes"
        bound = self.spending.costs.bounds.get(name, 0.0)
        return Refused(
            f"the training used up its budget; {saved}",
            f"budget.{name}",
            f"{bound:g} {UNITS[name]}",
            "raise the budget and run again to go on, or lower training.max_steps",
        )

    def actual(self, trainer: "Trainer") -> dict[str, Any]:
        """What it really came to, by the names of the quote."""
        steps = trainer.state.global_step
        share = steps / max(1.0, self.quote["steps"].value)
        return {
            "supervised_tokens": round(self.quote["supervised_tokens"].value * share),
            "tokens": round(trainer.state.num_input_tokens_seen),
            "steps": steps,
            "memory_gib": round(self._peak_gib, 4),
            **self.spending.as_dict(),
            **({"probe": {"seconds": round(p.took_s, 3), "busy": p.busy}} if (p := self._probed) else {}),
        }


def begin(
    materials: Materials,
    data: "TrainingData",
    proof: "Proof",
    work: Path,
    report: "Report",
    max_minutes: float | None,
    spent_s: float,
) -> Settle:
    """The callback of a training whose examples are counted; what it spends is counted from here on.

    Args:
        max_minutes: training time that it may take, over all attempts.
        spent_s: training time of earlier attempts.
    """
    job, costs = jobs.of(materials), materials.costs
    if max_minutes is not None:
        costs = replace(costs, bounds={**costs.bounds, "training_minutes": max_minutes})
    spread = materials.inputs.training.distributed
    spending = Spending(costs, job.workers, spread.nodes, spent_s, _meter(job, costs))
    read, written = of_columns(data.train, encoder=job.network.encoder is not None)
    lengths = Lengths(
        tokens=read,
        written=written,
        supervised=proof.supervised / max(1, proof.examples * job.sequences),
        rows=Figure.exact(float(len(data.train))),
        validation=len(data.validation) if data.validation is not None else 0,
    )
    return Settle(job, quote.quote(job, lengths, costs.terms, "estimate"), spending, work, report)


def _meter(job: Job, costs: Costs) -> energy.Meter | None:
    """The meter of this node, read by its first rank; none where nobody prices energy."""
    meters = energy.found(job.device) if ranks.first() and costs.terms.watts else ""
    return energy.Meter(meters, costs.terms.pue) if meters else None


def _machine() -> str:
    """What a probe's seconds and bytes hold for."""
    import torch

    found = machine.found()
    return f"{found.gpu or torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
