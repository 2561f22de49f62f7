"""The recipes of a proposal, as project.yaml takes them: settings by method, base and amount of data."""

import math
from dataclasses import dataclass
from typing import Any

from ftaas_pipelines.projects.recipe import Recipe
from ftaas_pipelines.training.catalogue.bases import Base
from ftaas_pipelines.training.catalogue.courses import CHARACTERS_PER_TOKEN, Course
from ftaas_pipelines.training.data_facts import DataFacts

ROWS_PER_STEP = {"grpo": 64}  # answers; of every other method 16 records
_ROWS_PER_STEP = 16
_TEMPLATE_TOKENS = 32  # that a chat template writes around a question and its answer
_ROOM = 1.3  # tokens of a text over what its characters say: numbers and names take more
_IMAGE_TOKENS = 1024
_GENERATIONS, _SAMPLED_STEPS = 8, 200
# Learning rates of LoRA that are usual for each method; preferences and rewards take small steps.
_RATES = {
    "dpo": 5e-6,
    "kto": 5e-6,
    "orpo": 8e-6,
    "grpo": 1e-5,
    "pretrain": 1e-4,
    "vision": 1e-4,
    "seq2seq": 1e-3,
}
_RATE = 2e-4
_WHOLE_RATE = {"seq2seq": 1e-4}
# The embedded bases were measured: steps a hundred times larger than those of usual ones.
_EMBEDDED_RATE = {"dpo": 1e-3, "kto": 1e-3, "orpo": 1e-3, "grpo": 1e-3}
_EMBEDDED = 5e-3


@dataclass(frozen=True)
class Variant:
    """How the weights are held while they learn."""

    adapter: dict[str, Any]
    gradient_checkpointing: bool
    batch_size: int

    @property
    def named(self) -> str:
        if self.adapter.get("kind") == "full":
            how = "full fine-tuning"
        else:
            how = "QLoRA" if self.adapter.get("quantise") else "LoRA"
        return how + (" with gradient checkpointing" if self.gradient_checkpointing else "")


def variants(base: Base, facts: DataFacts, course: Course, on_gpu: bool) -> list[Variant]:
    """Ways to hold a base in memory, best first: LoRA, fewer rows at once, checkpointing, four bits."""
    r = _rank(facts, course)
    lora: dict[str, Any] = {"r": r, "alpha": 2 * r}
    if r > 32:
        lora = {"r": r, "alpha": r, "rslora": True}
    adapters: list[tuple[dict[str, Any], bool]] = [(lora, False), (lora, True)]
    if on_gpu and not base.embedded:
        adapters.append(({**lora, "quantise": "nf4"}, True))
    if (
        base.family == "seq2seq" and base.parameters < 300_000_000
    ):  # so small that all of it is cheap to train
        adapters.insert(0, ({"kind": "full"}, False))
    batches = (16, 4, 1)
    return [Variant(adapter, again, batch) for adapter, again in adapters for batch in batches]


def _rank(facts: DataFacts, course: Course) -> int:
    if course.methods[0] == "pretrain":
        return 64
    return 8 if facts.records < 500 else 16 if facts.records < 10_000 else 32


def max_seq_tokens(facts: DataFacts, course: Course, base: Base) -> int:
    """Tokens that nineteen of twenty records fit into, in steps of 64, at most what the base reads."""
    characters = facts.prompt_characters.p95 + facts.answer_characters.p95
    wanted = characters / CHARACTERS_PER_TOKEN * _ROOM + _TEMPLATE_TOKENS
    if course.methods == ("pretrain",):
        wanted = max(wanted, 1024)
    if "vision" in course.methods:
        wanted += _IMAGE_TOKENS
    rounded = 64 * math.ceil(wanted / 64)
    return min(rounded, base.context or rounded)


def lengths(facts: DataFacts, recipe: Recipe) -> list[int]:
    """Tokens of twenty sequences that stand for all of them, sorted, as a recipe cuts them.

    By three quantiles: a quarter half as long as the median, half of it, a fifth as p95, one as the longest.
    What is sampled (grpo) is as long as it may be.
    """
    answer: Any = getattr(recipe.method, "max_new_tokens", None)
    asked, said = facts.prompt_characters, facts.answer_characters

    def tokens(question: float, spoken: float) -> int:
        written = answer if answer is not None else spoken / CHARACTERS_PER_TOKEN
        whole = round(question / CHARACTERS_PER_TOKEN + written + _TEMPLATE_TOKENS)
        return max(1, min(recipe.training.max_seq_tokens, whole))

    usual = [tokens(asked.median / 2, said.median / 2)] * 5 + [tokens(asked.median, said.median)] * 10
    return sorted([*usual, *[tokens(asked.p95, said.p95)] * 4, tokens(asked.longest, said.longest)])


def recipes(course: Course, base: Base, facts: DataFacts, variant: Variant) -> list[dict[str, Any]]:
    """The recipes of a course on a base, each naming the one it goes on with."""
    limit = max_seq_tokens(facts, course, base)
    made: list[dict[str, Any]] = []
    for kind in course.methods:
        one: dict[str, Any] = {"name": kind, "method": _method(kind, facts, limit)}
        if made:
            one["init_from"] = made[-1]["name"]
        else:
            one["adapter"] = variant.adapter
        one["training"] = {
            **_length(kind, facts, first=len(course.methods) > 1 and not made),
            "batch_size": variant.batch_size,
            "gradient_accumulation": ROWS_PER_STEP.get(kind, _ROWS_PER_STEP) // variant.batch_size,
            "learning_rate": _rate(kind, base, whole=variant.adapter.get("kind") == "full"),
            "max_seq_tokens": limit,
        }
        if variant.gradient_checkpointing:
            one["training"]["gradient_checkpointing"] = True
        made.append(one)
    return made


def checked(made: list[dict[str, Any]]) -> list[Recipe]:
    """The same as project.yaml would read them."""
    found = [Recipe.model_validate(one) for one in made]
    adapter = found[0].adapter
    return [found[0], *(one.model_copy(update={"adapter": adapter}) for one in found[1:])]


def _method(kind: str, facts: DataFacts, limit: int) -> str | dict[str, Any]:
    if kind == "grpo":
        room = math.ceil(facts.answer_characters.p95 / CHARACTERS_PER_TOKEN * _ROOM / 32) * 32 + 32
        grader = "numeric" if facts.numbers >= facts.kinds.get("prompt", 0) > 0 else "exact_match"
        return {
            "kind": "grpo",
            "generations": _GENERATIONS,
            "max_new_tokens": min(room, limit // 2),
            "rewards": [{"kind": grader}],
        }
    return kind


def _length(kind: str, facts: DataFacts, first: bool) -> dict[str, Any]:
    """How long: more rounds over little data; one before a method that goes on with it."""
    if kind == "grpo":
        return {"max_steps": _SAMPLED_STEPS}
    if first or kind in ("pretrain", "dpo", "kto"):
        return {"epochs": 1.0}
    return {"epochs": 5.0 if facts.records < 500 else 3.0 if facts.records < 20_000 else 1.0}


def _rate(kind: str, base: Base, whole: bool) -> float:
    if base.embedded:
        return 1e-3 if whole else _EMBEDDED_RATE.get(kind, _EMBEDDED)
    if whole:
        return _WHOLE_RATE.get(kind, 1e-5)
    return _RATES.get(kind, _RATE)
