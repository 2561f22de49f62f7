"""What a recipe would take on a base that need not be here: memory by its shapes, time by its sums.

Both are those of `training.planning`, on guessed lengths: characters instead of tokens. Good enough to choose
by; the quote of `ftaas run NAME --plan` is the one to hold a budget against.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ftaas_pipelines.projects.prices import Terms
from ftaas_pipelines.projects.recipe import Recipe
from ftaas_pipelines.training import plan, resolve
from ftaas_pipelines.training.catalogue import bases
from ftaas_pipelines.training.catalogue.bases import Base
from ftaas_pipelines.training.catalogue.shapes import DescribedBase
from ftaas_pipelines.training.machine import Machine
from ftaas_pipelines.training.planning import duration, memory, network
from ftaas_pipelines.training.planning.duration import Pace
from ftaas_pipelines.training.planning.job import Job
from ftaas_pipelines.training.planning.lengths import expected_longest
from ftaas_pipelines.training.planning.network import Network

TOKENS = 2048  # that the memory of a base is shown for
_HELD = 0.1  # of the records, for validation


@dataclass(frozen=True)
class Rig:
    """What trains: one GPU, or the cores of a machine without one.

    Attributes:
        memory_gib: of that GPU, or of the host.
        pace: how fast it is.
    """

    name: str
    gpus: int
    cores: int
    memory_gib: float
    usd_per_hour: float = 0.0
    pace: Pace = Pace(1e12, 1e11, 1e-6, 1e11)

    @classmethod
    def of(cls, terms: Terms, threads: int) -> "Rig":
        """The machine that a budget comes to; of a CPU, the pace of the one at hand is measured."""
        rig = cls(terms.hardware, terms.gpus, threads, terms.memory_gib, terms.usd_per_hour)
        any_job = job(bases.embedded_bases()[0], Recipe(name="r"), 1, rig)
        return replace(rig, pace=duration.pace(any_job, terms))


@dataclass(frozen=True)
class Taken:
    """What one training takes. Memory is of one device, in GiB."""

    memory_gib: float
    seconds: float


@cache
def shape(id: str) -> Network:
    """The network of a base of the catalogue.

    Raises:
        InputInvalid: the catalogue does not know it.
    """
    base = bases.get(id)
    if base.embedded:
        return network.read(bases.folder(id))
    found = network.of(DescribedBase(Path(), base.config))
    # Of a vision-language model, the configuration here is that of the language model alone.
    return replace(found, parameters=base.parameters, frozen_small=base.parameters - found.body)


def job(base: Base, recipe: Recipe, records: int, rig: Rig) -> Job:
    """The training of a recipe, every default written in for the machine."""
    device: Literal["cpu", "cuda"] = "cuda" if rig.gpus else "cpu"
    machine = Machine(device, rig.gpus, rig.name, rig.memory_gib, True, rig.cores, rig.memory_gib)
    fitted = resolve.resolve(recipe, {"train": records}, base.family, machine)
    net = shape(base.id)
    return Job(fitted.method, fitted.adapter, fitted.training, net, device, threads=max(1, rig.cores))


def taken(one: Job, records: int, lengths: Sequence[int], rig: Rig) -> Taken:
    """Memory and time of a training.

    Args:
        records: of the training split.
        lengths: tokens of some sequences that stand for all, question and answer, sorted.
    """
    training = one.training
    both = one.network.encoder is not None
    longest = lengths[-1]
    peak = memory.peak(one, longest, longest if both else 0)
    steps = training.max_steps or max(1.0, training.epochs * records / training.rows_per_step)
    padded = expected_longest(lengths, training.batch_size)
    held = min(plan.VALIDATION_ROWS, round(records * _HELD))
    judged = expected_longest(lengths, plan.evaluation_batch(training))
    seconds = duration.estimate(one, rig.pace, steps, (padded, padded if both else 0.0), held, judged)
    return Taken(peak.gib, seconds.total)


def memory_table(base: Base) -> dict[str, float]:
    """GiB of GPU memory to train a base at batch 1 in bf16, by technique: lora, qlora, full.

    At 2,048 tokens, or as many as it reads, with gradient checkpointing: the least that will do.
    """
    adapters = {"lora": {"r": 16}, "qlora": {"r": 16, "quantise": "nf4"}, "full": {"kind": "full"}}
    return {name: round(_least_gib(base, adapter), 1) for name, adapter in adapters.items()}


def _least_gib(base: Base, adapter: dict[str, Any]) -> float:
    gpu = Rig("a GPU", gpus=1, cores=1, memory_gib=0.0)
    longest = min(TOKENS, base.context or TOKENS)
    training = {"batch_size": 1, "max_seq_tokens": longest, "gradient_checkpointing": True}
    kind = "sft" if base.family == "causal" else base.family
    recipe = Recipe.model_validate({"name": "r", "method": kind, "adapter": adapter, "training": training})
    return memory.peak(job(base, recipe, 1, gpu), longest, longest if base.family == "seq2seq" else 0).gib
