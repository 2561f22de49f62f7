"""Advice: data, a task and a budget to a recipe and a base, with reasons, and what was left out and why.

Rules, no learning: the same facts give the same advice. What is proposed is the largest base that the task
asks for and the budget can pay; figures are those of `estimate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ftaas_pipelines.errors import InputInvalid, Refused
from ftaas_pipelines.projects.licences import Licences
from ftaas_pipelines.training.catalogue import courses, estimate, proposal
from ftaas_pipelines.training.catalogue.bases import Base
from ftaas_pipelines.training.catalogue.courses import Course
from ftaas_pipelines.training.catalogue.estimate import Rig, Taken
from ftaas_pipelines.training.catalogue.proposal import Variant
from ftaas_pipelines.training.data_facts import DataFacts

# Minutes that a proposal may take where no budget says it: nobody waits a day for a machine they work on.
ON_GPU, ON_CPU = 24 * 60.0, 4 * 60.0
# Weights, in billions, from which on a larger base seldom does a task better once it is tuned.
_ENOUGH = {
    "classification": 2,
    "extraction": 4,
    "correction": 4,
    "qa": 9,
    "chat": 9,
    "functions": 9,
    "agents": 15,
}
_USABLE = 0.9  # of the memory: what is left is for what the estimate does not see


@dataclass(frozen=True)
class Question:
    """What advice is asked about.

    Attributes:
        task: as in project.yaml.
        rig: what trains: its memory, speed and price.
        usd, minutes: of all trainings of the proposal together; None: no limit; `ON_GPU`, `ON_CPU`.
        licences: of the platform policy and of the project.
    """

    facts: DataFacts
    task: str
    rig: Rig
    usd: float | None = None
    minutes: float | None = None
    licences: Sequence[Licences] = ()

    @property
    def most_minutes(self) -> float:
        if self.minutes is not None:
            return self.minutes
        return ON_GPU if self.rig.gpus else ON_CPU


@dataclass(frozen=True)
class Proposal:
    """A base and the recipes to train it by, with what they would take.

    Attributes:
        recipes: as project.yaml takes them.
        memory_gib: of the device; `minutes` and `usd` are of all recipes together.
    """

    course: Course
    base: Base
    variant: Variant
    recipes: list[dict[str, Any]]
    memory_gib: float
    minutes: float
    usd: float

    @property
    def figures(self) -> str:
        """What it takes, in words."""
        price = f", {self.usd:,.2f} USD" if self.usd else ""
        return f"{self.memory_gib:.1f} GiB, about {_minutes(self.minutes)}{price}"


@dataclass(frozen=True)
class Advice:
    """What is proposed and why; what was left out and why, methods first."""

    proposal: Proposal
    reasons: list[str]
    left_out: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


def advise(question: Question, bases: Sequence[Base]) -> Advice:
    """Propose a base of these and recipes for it.

    Raises:
        InputInvalid: no method learns from all of the data, or there is none.
        Refused: nothing fits the budget; names the least that would do.
    """
    facts = question.facts
    possible = courses.courses(facts, question.task)
    if not possible:
        got = ", ".join(f"{n:,} {kind}" for kind, n in facts.kinds.items()) or "no records"
        what, do = (
            "no method learns from all of the data",
            "leave the sources of other kinds out, or add data",
        )
        raise InputInvalid(what, "dataset", got, do)
    left_out: list[tuple[str, str]] = []
    least: Proposal | None = None
    for course in possible:
        for base in _ranked(bases, course, question.task):
            if why := _unusable(base, question):
                left_out.append((base.id, why))
                continue
            fits, nearest = _fitted(course, base, question)
            if fits:
                others = courses.other_methods(facts, question.task, course)
                return Advice(fits, _reasons(fits, question), list(dict([*others, *left_out]).items()))
            left_out.append((base.id, f"{' then '.join(course.methods)} {_beyond(nearest, question)}"))
            least = min(filter(None, (least, nearest)), key=lambda one: _over(one, question))
    raise _nothing(question, least, left_out)


def _ranked(bases: Sequence[Base], course: Course, task: str) -> list[Base]:
    """The family's, the largest that the task asks for first; then larger ones; embedded ones last.

    Before others go those of a free licence, and where nothing rewards thinking those that do not.
    """
    enough = _ENOUGH.get(task, 9) * 1e9

    def rank(base: Base) -> tuple[Any, ...]:
        larger = base.parameters > enough
        idle = base.thinks and "grpo" not in course.methods
        size = base.parameters if larger else -base.parameters
        return base.embedded, larger, idle, not base.free, size, base.id

    return sorted((base for base in bases if base.family == course.family), key=rank)


def _unusable(base: Base, question: Question) -> str:
    """Why a base is out of the question whatever it costs; empty: it is not."""
    for terms in question.licences:
        if why := terms.why_not(base.licence):
            return f"its licence is {base.licence or 'unknown'}: the policy {why}"
    if not base.commercial and not any(terms.allow for terms in question.licences):
        return (
            f"its licence {base.licence} is for non-commercial use; have the project's licences.allow name it"
        )
    wanted = courses.tokens(question.facts)
    if base.context and wanted > base.context:
        return f"it reads {base.context:,} tokens, and one record in twenty has more than {wanted:,}"
    if (
        question.task in ("chat", "agents", "functions")
        and base.family == "causal"
        and not base.chat_template
    ):
        return f"it was never taught to answer, and the task is {question.task}"
    return ""


def _fitted(course: Course, base: Base, question: Question) -> tuple[Proposal | None, Proposal]:
    """The best way to train a base within the budget, if there is one, and the one that comes nearest."""
    tried: list[Proposal] = []
    for variant in proposal.variants(base, question.facts, course, on_gpu=question.rig.gpus > 0):
        tried.append(_proposed(course, base, variant, question))
        if _over(tried[-1], question) <= 1:
            return tried[-1], tried[-1]
    return None, min(tried, key=lambda one: _over(one, question))


def _proposed(course: Course, base: Base, variant: Variant, question: Question) -> Proposal:
    facts, rig = question.facts, question.rig
    made = proposal.recipes(course, base, facts, variant)
    taken: list[Taken] = []
    for recipe in proposal.checked(made):
        lengths = proposal.lengths(facts, recipe)
        job = estimate.job(base, recipe, facts.records, rig)
        taken.append(estimate.taken(job, facts.records, lengths, rig))
    seconds = sum(one.seconds for one in taken)
    memory = max(one.memory_gib for one in taken)
    return Proposal(course, base, variant, made, memory, seconds / 60, seconds / 3600 * rig.usd_per_hour)


def _over(one: Proposal, question: Question) -> float:
    """How many times the budget a proposal takes, by the limit that it breaks most; up to 1 it fits."""
    shares = [one.memory_gib / (_USABLE * question.rig.memory_gib), one.minutes / question.most_minutes]
    if question.usd is not None:
        shares.append(one.usd / question.usd if question.usd else float(one.usd > 0) * 2)
    return max(shares)


def _beyond(one: Proposal, question: Question) -> str:
    """Which limits a proposal breaks, in words; empty: none."""
    found: list[str] = []
    most = _USABLE * question.rig.memory_gib
    if one.memory_gib > most:
        found.append(f"takes {one.memory_gib:.1f} GiB of {most:.1f}")
    if one.minutes > question.most_minutes:
        found.append(f"takes about {_minutes(one.minutes)} of {_minutes(question.most_minutes)}")
    if question.usd is not None and one.usd > question.usd:
        found.append(f"costs about {one.usd:,.2f} USD of {question.usd:,.2f}")
    return " and ".join(found)


def _reasons(one: Proposal, question: Question) -> list[str]:
    facts, base, rig = question.facts, one.base, question.rig
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in facts.kinds.items())
    of = f" of {facts.records:,} records" if facts.seen < facts.records else ""
    limit = one.recipes[0]["training"]["max_seq_tokens"]
    found = [
        f"data: looked at {facts.seen:,}{of} ({kinds}); half the answers have at most "
        f"{facts.answer_characters.median:,} characters",
        f"method {' then '.join(one.course.methods)}: {one.course.why}",
        f"base {base.id}: {_why_base(base, question.task)}; licence {base.licence or 'unknown'}"
        f" ({base.licence_notes})",
        f"{one.variant.named}, {_rows(one.variant.batch_size)} at once: {_why_variant(one.variant)}",
        f"max_seq_tokens {limit}: nineteen of twenty records fit, by their characters",
        f"it takes {one.figures} on {rig.name} with {rig.memory_gib:.0f} GiB; lengths are guessed "
        "from characters, so ask `ftaas run NAME --plan` before it counts",
    ]
    if base.embedded:
        limits = ". ".join(base.not_for.split(". ")[:2])
        found.append(f"nothing larger fits here, and this one is for trying the platform. {limits}")
    return found


def _rows(count: int) -> str:
    return "one row" if count == 1 else f"{count} rows"


def _why_base(base: Base, task: str) -> str:
    if base.embedded:
        return "it comes with the platform and trains on a CPU in minutes"
    if base.parameters <= _ENOUGH.get(task, 9) * 1e9:
        return f"the largest that fits, of those up to what {task} asks for; good for {base.good_for}"
    return f"the smallest that fits; good for {base.good_for}"


def _why_variant(variant: Variant) -> str:
    if variant.adapter.get("kind") == "full":
        return "the base is so small that all of it is cheap to train"
    if variant.adapter.get("quantise"):
        return "in bf16 the base does not fit"
    if variant.gradient_checkpointing:
        return "without checkpointing the activations do not fit"
    return "it fits, and nothing that is slower or less exact is needed"


def _nothing(question: Question, least: Proposal | None, left_out: Sequence[tuple[str, str]]) -> Refused:
    has = [f"{question.rig.memory_gib:.0f} GiB", _minutes(question.most_minutes)]
    if question.usd is not None:
        has.append(f"{question.usd:,.2f} USD")
    if least is None:
        why = "; ".join(f"{id}: {reason}" for id, reason in dict(left_out).items())
        do = "let the policy allow another licence, or shorten the records"
        return Refused("no base of the catalogue may be used", "recipe advise", why, do)
    nearest = f"the nearest is {least.base.id} by {least.variant.named}: {least.figures}"
    do = f"{nearest}; raise the budget, or take less data"
    return Refused("nothing of the catalogue fits the budget", "recipe advise", ", ".join(has), do)


def _minutes(minutes: float) -> str:
    if minutes < 1.5:
        return "a minute"
    return f"{minutes:,.0f} minutes" if minutes < 180 else f"{minutes / 60:,.1f} hours"
