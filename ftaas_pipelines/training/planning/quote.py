"""The quote: what a training will take, how sure that is, and whether a budget covers it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ftaas_pipelines.errors import Problem, Refused
from ftaas_pipelines.projects.prices import Terms
from ftaas_pipelines.projects.project import Budget
from ftaas_pipelines.projects.recipe import Training
from ftaas_pipelines.training import plan
from ftaas_pipelines.training.planning import duration, memory
from ftaas_pipelines.training.planning.costs import UNITS, UNPRICED
from ftaas_pipelines.training.planning.figure import Figure
from ftaas_pipelines.training.planning.job import Job
from ftaas_pipelines.training.planning.lengths import Lengths, expected_longest, packed

Basis = Literal["range", "estimate", "probed"]
FIGURES = ("supervised_tokens", "tokens", "steps", "memory_gib", "seconds", "usd", "kwh", "co2e_kg")
_COUNTS = FIGURES[:3]
UNPROBED = 0.3
# A GPU's rate is a table's until something has run on it; how long sampled answers get, nobody knows before.
_GPU, _ONLINE = 0.5, 0.6
PROBED_MEMORY, PROBED_SECONDS = 0.1, 0.2
_PRUNED = (0.4, 0.75, 1.0)  # part of its steps that a trial of a pruned sweep runs


@dataclass(frozen=True)
class Quote:
    """What one training will take.

    Attributes:
        basis: `range` from raw files, `estimate` from counted tokens, `probed` by passes of the training.
        figures: by the names of `FIGURES`, those that are known; `seconds` is training time, from the
            trainer's start to its end.
        notes: what a reader must know beside the figures.
    """

    basis: Basis
    figures: Mapping[str, Figure]
    terms: Terms
    workers: int
    nodes: int
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Figure:
        return self.figures[name]

    def known(self, name: str) -> bool:
        """Whether there is something to say of a figure."""
        return name in self.figures and self.figures[name].high > 0

    def __str__(self) -> str:
        units = {"seconds": "s", "memory_gib": "GiB", "usd": "USD", "kwh": "kWh"}
        shown = [(self.figures[name], unit) for name, unit in units.items() if self.known(name)]
        return ", ".join(
            [self.basis, *(f"{x.value:.3g} {unit} ({x.low:.3g} to {x.high:.3g})" for x, unit in shown)]
        )

    def as_dict(self) -> dict[str, Any]:
        """As `--json` and the attestation hold it."""
        return {
            "basis": self.basis,
            "hardware": self.terms.hardware,
            "region": self.terms.region,
            "spot": self.terms.spot,
            "prices": self.terms.prices,
            **{name: self._written(name) for name in FIGURES if name in self.figures},
            "notes": list(self.notes),
        }

    def _written(self, name: str) -> dict[str, float]:
        written = self.figures[name].as_dict()
        return {bound: round(x) for bound, x in written.items()} if name in _COUNTS else written

    def settled(self, seconds: Figure, gib: Figure) -> "Quote":
        """The same training with time and memory as they were measured on it."""
        costs = _costs(self.terms, seconds, self.workers, self.nodes)
        return replace(self, basis="probed", figures={**self.figures, "memory_gib": gib, **costs}, notes=())


def quote(job: Job, lengths: Lengths, terms: Terms, basis: Basis) -> Quote:
    """What a training will take, from shapes and lengths alone.

    Args:
        job: its training may still leave steps to the data.
    """
    training, nodes = job.training, job.training.distributed.nodes
    if job.packing:
        lengths = packed(lengths, training.max_seq_tokens)
    counts, resolved = _resolved(job, lengths)
    job = job.with_training(eval_steps=resolved[1].eval_steps, save_steps=resolved[1].save_steps)
    steps = Figure(*sorted(float(r.max_steps or 1) for r in resolved))
    shapes = [_Shape.of(job, lengths, by) for by in (lengths.spread[0], 1.0, lengths.spread[1])]
    seconds = _seconds(job, lengths, terms, steps, shapes)
    held = [memory.peak(job, *shape.longest).gib for shape in shapes]
    seen = _seen(resolved, counts) * job.sequences
    figures = {
        "supervised_tokens": seen * _spread(lengths.supervised, lengths),
        "tokens": seen * Figure(*(sum(shape.padded) for shape in shapes)),
        "steps": steps,
        "memory_gib": Figure(held[0] * (1 - UNPROBED), held[1], held[2] * (1 + UNPROBED)),
        **_costs(terms, seconds, job.workers, nodes),
    }
    return Quote(basis, figures, terms, job.workers, nodes, _notes(job, terms))


def of_provider(
    job: Job, lengths: Lengths, basis: Basis, provider: str, usd_per_token: float | None
) -> Quote:
    """What is known of a training on a provider's machines: its tokens, and their price where it has one."""
    counts, resolved = _resolved(job, lengths)
    seen = _seen(resolved, counts) * job.sequences
    figures = {
        "supervised_tokens": seen * _spread(lengths.supervised, lengths),
        "tokens": seen * _spread(lengths.mean(), lengths),
    }
    if usd_per_token is not None:
        figures["usd"] = figures["tokens"] * usd_per_token
    notes = ("time, memory and energy are the provider's",)
    return Quote(basis, figures, replace(UNPRICED, hardware=provider), 1, 1, notes)


@dataclass(frozen=True)
class _Shape:
    """A batch of a training whose sequences are longer or shorter by a factor than those counted.

    Attributes:
        padded: tokens of one sequence, padding with it: read, and written by an encoder-decoder.
        longest: of the longest sequence.
    """

    padded: tuple[float, float]
    longest: tuple[int, int]

    @classmethod
    def of(cls, job: Job, lengths: Lengths, by: float) -> "_Shape":
        limit = job.training.max_seq_tokens
        read, written = lengths.padded(job.training.batch_size * job.sequences)
        longest = max(1, min(limit, round(lengths.longest * by))), round(lengths.longest_written * by)
        return cls((min(read * by, limit), min(written * by, limit)), (longest[0], min(limit, longest[1])))


def _resolved(job: Job, lengths: Lengths) -> tuple[list[int], list[Training]]:
    """How many examples there are at least, likely and at most, and what the training comes to on each."""
    rows = [max(1, round(n)) for n in (lengths.rows.low, lengths.rows.value, lengths.rows.high)]
    counts = [plan.examples_of(job.method, n) for n in rows]
    return counts, [plan.resolve_training(job.training, n) for n in counts]


def _seen(resolved: list[Training], counts: list[int]) -> Figure:
    """Examples that are seen in all."""
    return Figure(*sorted(one.epochs * n for one, n in zip(resolved, counts, strict=True)))


def _spread(value: float, lengths: Lengths) -> Figure:
    return Figure(value * lengths.spread[0], value, value * lengths.spread[1])


def _seconds(job: Job, lengths: Lengths, terms: Terms, steps: Figure, shapes: list[_Shape]) -> Figure:
    share = _ONLINE if job.online else _GPU if job.device == "cuda" else UNPROBED
    at = duration.pace(job, terms)
    judged = expected_longest(lengths.tokens, plan.evaluation_batch(job.training))
    least, likely, most = (
        duration.estimate(job, at, count, shape.padded, lengths.validation, judged, lengths.supervised).total
        for count, shape in zip((steps.low, steps.value, steps.high), shapes, strict=True)
    )
    found = Figure(least * (1 - share), likely, most * (1 + share))
    if job.sweep:
        low, value, high = _PRUNED if job.sweep.prune else (1.0, 1.0, 1.0)
        found = found * Figure(low * job.sweep.trials, value * job.sweep.trials, high * job.sweep.trials)
    return found


def _costs(terms: Terms, seconds: Figure, workers: int, nodes: int) -> dict[str, Figure]:
    """Time, and what goes with it."""
    kwh = seconds * (terms.kwh(1.0, workers) * nodes)
    return {
        "seconds": seconds,
        "usd": seconds * (terms.usd(1.0) * nodes),
        "kwh": kwh,
        "co2e_kg": kwh * terms.carbon_kg_per_kwh,
    }


def _notes(job: Job, terms: Terms) -> tuple[str, ...]:
    said: list[str] = []
    processes = job.training.distributed.processes
    if job.online:
        said.append("answers are sampled on the way: the first steps settle time and memory")
    elif job.device == "cuda":
        said.append("the rate of the GPU is the price table's; the probe before step 1 measures it")
    if job.device == "cuda" and processes > max(1, terms.gpus):
        said.append(f"asks for {processes} GPUs on a node; {terms.hardware} has {terms.gpus}")
    if job.sweep:
        said.append(f"{job.sweep.trials} trials" + (", bad ones ended early" if job.sweep.prune else ""))
    return tuple(said)


def bounds(budget: Budget) -> dict[str, float]:
    """What a budget bounds, by the names of its fields."""
    return {name: float(bound) for name in UNITS if (bound := getattr(budget, name)) is not None}


def check(found: Quote, budget: Mapping[str, float], asset: str = "the training") -> None:
    """Refuse what a budget does not cover: an unprobed quote by its low end, a probed one by its value.

    Args:
        budget: bounds by the names of `Budget`'s fields.

    Raises:
        Refused: with one problem for each bound that would be broken, and by how much.
    """
    problems: list[Problem] = []
    for name, bound in budget.items():
        figure, unit = ("seconds", 60.0) if name == "training_minutes" else (name, 1.0)
        if figure not in found.figures:
            continue
        low, value, high = (x / unit for x in (found[figure].low, found[figure].value, found[figure].high))
        least = value if found.basis == "probed" else low
        if least > bound:
            quoted = f"{value:.3g} {UNITS[name]} ({low:.3g} to {high:.3g}, {found.basis})"
            problems.append(
                Problem(
                    f"{asset} would break its budget",
                    f"budget.{name}",
                    f"{quoted} where {bound:g} may be spent: at least {least - bound:.3g} too much",
                    "raise the budget, or take fewer steps, a smaller base or another machine",
                )
            )
    if problems:
        raise Refused(problems)
