"""What the adapters of a line will take: a quote for each, before anything is spent."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from assets.line import Line
from ftaas_pipelines.errors import Problem, Refused
from ftaas_pipelines.inference import bases
from ftaas_pipelines.projects.prices import THIS_MACHINE
from ftaas_pipelines.projects.provider import Bedrock, OpenAiTuning, Provider
from ftaas_pipelines.projects.recipe import Recipe
from ftaas_pipelines.training import machine, resolve
from ftaas_pipelines.training.machine import Machine
from ftaas_pipelines.training.planning import network, quote, tokens
from ftaas_pipelines.training.planning.job import Job
from ftaas_pipelines.training.planning.lengths import Lengths
from ftaas_pipelines.training.planning.network import Network
from ftaas_pipelines.training.planning.quote import Basis, Quote

_DATA = ("max_steps", "epochs", "eval_steps", "save_steps")  # what resolving works out from the data


class Quoting:
    """Quotes of one line: estimates from its splits where they are made, else ranges from its raw files."""

    def __init__(self, line: Line):
        self._line = line
        self._counted: dict[tuple[Any, ...], Lengths] = {}

    @property
    def basis(self) -> Basis:
        return "estimate" if self._line.splits else "range"

    def quotes(self, assets: list[str]) -> dict[str, Quote]:
        """The quote of each of these adapter assets.

        Raises:
            InputInvalid: the base, the price table or the data is wrong.
        """
        return {name: self.of(self._line.project.recipe(name.removeprefix("adapter_"))) for name in assets}

    def of(self, recipe: Recipe) -> Quote:
        """The quote of one recipe. Raises as `quotes`."""
        line, asked = self._line, recipe.training
        method = resolve.method(recipe.method, line.family)
        before = line.project.adapter_before(recipe)
        lengths = self._lengths(method, asked.max_seq_tokens, tuple(recipe.sources or ()))
        counts = {"train": max(1, round(lengths.rows.value))}
        how = resolve.resolve(recipe, counts, line.family, self._machine, before)
        teacher = line.teacher_path(recipe)
        job = Job(
            method=how.method,
            adapter=how.adapter,
            # As asked, not as resolved: of a range, the steps are one, too.
            training=how.training.model_copy(update={name: getattr(asked, name) for name in _DATA}),
            network=self._network,
            device=self._machine.device,
            threads=line.settings.threads,
            teacher=network.read(teacher) if teacher else None,
            sweep=recipe.sweep,
        )
        if recipe.provider:
            price = _usd_per_token(recipe.provider)
            return quote.of_provider(job, lengths, self.basis, recipe.provider.kind, price)
        return quote.quote(job, lengths, line.terms, self.basis)

    @cached_property
    def _network(self) -> Network:
        return network.read(self._line.base_path)

    @cached_property
    def _machine(self) -> Machine:
        """What will train: the machine that the budget names, or this one."""
        terms, here = self._line.terms, machine.found()
        if terms.hardware == THIS_MACHINE:
            return here
        gpu_memory = terms.memory_gib if terms.gpus else 0.0
        device = "cuda" if terms.gpus else "cpu"
        memory_gib = terms.memory_gib
        return Machine(device, terms.gpus, terms.hardware, gpu_memory, True, terms.cores, memory_gib)

    def _lengths(self, method: Any, limit: int, sources: tuple[str, ...]) -> Lengths:
        answer = getattr(method, "max_new_tokens", 0)
        key = (method.kind, answer, limit, sources)
        if key not in self._counted:
            self._counted[key] = self._count(method, limit, sources)
        return self._counted[key]

    def _count(self, method: Any, limit: int, only: tuple[str, ...]) -> Lengths:
        line = self._line
        tokenizer = bases.load_tokenizer(line.base_path)
        counter = tokens.Counter(tokenizer, method, line.family, limit, self._network.image_tokens)
        if line.splits:
            return tokens.of_splits(line.splits.path, counter, only)
        dataset = line.project.dataset
        sources = [s for s in dataset.sources if s.split in (None, "train") and (not only or s.name in only)]
        raw = [
            tokens.RawSource(
                source.name,
                line.landings[source.name].files,
                source.format or dataset.format,
                dict(source.columns or dataset.columns),
                source.encoding or dataset.encoding,
            )
            for source in sources
        ]
        declared = {s.split for s in dataset.sources}
        held = 0.0 if "validation" in declared else dataset.splits.validation
        tested = 0.0 if "test" in declared else dataset.splits.test
        return tokens.of_sources(raw, 1 - held - tested, held, counter)


def check(found: Mapping[str, Quote], budget: Mapping[str, float]) -> None:
    """Refuse where even the low end of a quote breaks the budget.

    Raises:
        Refused: with one problem for each asset and bound.
    """
    problems: list[Problem] = []
    for asset, one in found.items():
        try:
            quote.check(one, budget, asset)
        except Refused as refusal:
            problems += refusal.problems
    if problems:
        raise Refused(problems)


def require_affordable(line: Line, recipe: Recipe) -> None:
    """Hold a provider's price of tokens against the budget: what is spent there cannot be paused.

    Raises:
        Refused: even the low end of its quote breaks the budget.
    """
    if recipe.provider and _usd_per_token(recipe.provider) is not None:
        quote.check(Quoting(line).of(recipe), line.bounds(), f"adapter_{recipe.name}")


def _usd_per_token(provider: Provider) -> float | None:
    """The provider's price of a trained token, where it has one."""
    if isinstance(provider, Bedrock) and provider.usd_per_1k_tokens is not None:
        return provider.usd_per_1k_tokens / 1000
    if isinstance(provider, OpenAiTuning) and provider.usd_per_million_tokens is not None:
        return provider.usd_per_million_tokens / 1e6
    return None
