"""`ftaas data generate|label`: rows that a model writes, as a file and the source that it becomes."""

import enum
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli.output import Json, console, emit, facts, say
from ftaas_pipelines.data.synthesis.beginning import Beginning, find_source, generation
from ftaas_pipelines.data.synthesis.endpoint import Endpoint, Prices
from ftaas_pipelines.data.synthesis.work import Draft, Limits, opened, part_of
from ftaas_pipelines.errors import InputInvalid, Interrupted
from ftaas_pipelines.store import Artifact, digest_of

if TYPE_CHECKING:
    from assets.line import Line
    from ftaas_pipelines.data.synthesis.generate import Made

Name = Annotated[str, typer.Argument(help="The project's name.")]
Url = Annotated[str, typer.Option("--endpoint", help="Base URL of an OpenAI-compatible API, with its /v1.")]
Model = Annotated[str, typer.Option(help="The model as the endpoint names it.")]
Out = Annotated[Path, typer.Option(help="The JSONL file to make.")]
Key = Annotated[str, typer.Option(help="env:NAME or file:/path of the endpoint's key; never the key.")]
Budget = Annotated[float | None, typer.Option(min=0, help="Stop before it costs more; exits 3.")]
PromptPrice = Annotated[float, typer.Option(min=0, help="US dollars per 1,000 tokens read.")]
CompletionPrice = Annotated[float, typer.Option(min=0, help="US dollars per 1,000 tokens written.")]
Parallel = Annotated[int, typer.Option(min=1, max=64, help="Requests at a time.")]
Tokens = Annotated[int | None, typer.Option(min=1, help="Of one reply; by default the endpoint's limit.")]
Seed = Annotated[int, typer.Option(min=0, help="Another seed asks for other rows.")]


class Origin(enum.StrEnum):
    """What new rows begin with."""

    seeds = "seeds"
    documents = "documents"


class Way(enum.StrEnum):
    """How new rows come from seeds."""

    self_instruct = "self_instruct"
    evolve = "evolve"


def generate(
    name: Name,
    count: Annotated[int, typer.Option(min=1, help="Rows to make.")],
    endpoint: Url,
    model: Model,
    out: Out,
    origin: Annotated[Origin, typer.Option("--from", help="What new rows begin with.")] = Origin.seeds,
    source: Annotated[str, typer.Option(help="The source with the seeds or documents.")] = "",
    documents: Annotated[
        Path | None, typer.Option(help="A folder of documents, instead of a source: .md, .rst, .txt.")
    ] = None,
    method: Annotated[Way, typer.Option(help="How new rows come from seeds.")] = Way.self_instruct,
    api_key: Key = "",
    max_cost_usd: Budget = None,
    usd_per_1k_prompt_tokens: PromptPrice = 0.0,
    usd_per_1k_completion_tokens: CompletionPrice = 0.0,
    max_tokens: Tokens = None,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.7,
    parallel: Parallel = 4,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write new rows for a project with a model; run again to go on where it stopped."""
    from ftaas_pipelines.data.synthesis.generate import generate
    from ftaas_pipelines.data.synthesis.methods import Asking

    prices = Prices(usd_per_1k_prompt_tokens, usd_per_1k_completion_tokens)
    opening = _open(name, Endpoint(endpoint, model, api_key, prices, max_tokens), parallel, max_cost_usd, out)
    line = opening.line
    project = line.project
    beginning = Beginning(origin.value, source, documents, method.value)
    beginning.check(project.dataset)
    job = {
        **opening.job("generate"),
        "from": origin.value,
        "of": source or str(documents),
        "method": method.value,
        "temperature": temperature,
        "seed": seed,
    }
    with _working(opening, job, count, as_json) as (draft, progress):
        splits = _splits(line)
        if splits is None and source:
            say("there are no splits yet: a seed may still come to stand in the test split")
        asking = Asking(opening.endpoint, temperature, seed, project.intended_use, project.dataset.system)
        planned = generation(beginning, line.loaded, line.landings, splits, asking, count)
        opening.note_in_ledger(draft, job)
        made = generate(planned, draft, opening.limits, progress)
    _emit(as_json, opening, made)


def label(
    name: Name,
    endpoint: Url,
    model: Model,
    out: Out,
    source: Annotated[str, typer.Option(help="The project's source with the texts.")] = "",
    file: Annotated[Path | None, typer.Option(help="A data file with the texts instead.")] = None,
    column: Annotated[str, typer.Option(help="The column of texts.")] = "text",
    labels: Annotated[str, typer.Option(help="The labels to choose from: a,b,c.")] = "",
    instruction: Annotated[str, typer.Option(help="What to do, or how to choose.")] = "",
    votes: Annotated[int, typer.Option(min=1, max=99, help="How often each text is asked about.")] = 1,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Least share of the votes that an answer needs.")
    ] = 0.0,
    api_key: Key = "",
    max_cost_usd: Budget = None,
    usd_per_1k_prompt_tokens: PromptPrice = 0.0,
    usd_per_1k_completion_tokens: CompletionPrice = 0.0,
    max_tokens: Tokens = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="By default 0; with several votes 0.7.")
    ] = None,
    parallel: Parallel = 4,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Label the texts of a source or file with a model; run again to go on where it stopped."""
    from ftaas_pipelines.data.synthesis.label import Labelling, label, unlabelled

    prices = Prices(usd_per_1k_prompt_tokens, usd_per_1k_completion_tokens)
    opening = _open(name, Endpoint(endpoint, model, api_key, prices, max_tokens), parallel, max_cost_usd, out)
    chosen = _labels(labels, instruction)
    heat = temperature if temperature is not None else 0.7 if votes > 1 else 0.0
    paths, encoding = _texts_from(opening.line, source, file)
    job = {
        **opening.job("label"),
        "of": source or str(file),
        "column": column,
        "labels": chosen,
        "instruction": instruction,
        "votes": votes,
        "min_agreement": min_agreement,
        "temperature": heat,
        "seed": seed,
    }
    data = unlabelled(paths, encoding, column, opening.line.loaded)
    job["texts"] = digest_of(data.texts)
    with _working(opening, job, len(data.texts), as_json) as (draft, progress):
        opening.note_in_ledger(draft, job)
        labelling = Labelling(opening.endpoint, data, chosen, instruction, votes, min_agreement, heat, seed)
        made = label(labelling, draft, opening.limits, progress)
    _emit(as_json, opening, made)


@dataclass(frozen=True)
class _Opening:
    """What both commands start with."""

    line: "Line"
    endpoint: Endpoint
    limits: Limits
    out: Path

    def job(self, kind: str) -> dict[str, Any]:
        """What decides the rows: how many are wanted and what they may cost does not."""
        line, endpoint = self.line, self.endpoint
        dataset = line.project.dataset
        rules = {"duplicates": dataset.duplicates.model_dump(), "privacy": dataset.privacy.model_dump()}
        return {
            "job": kind,
            "project": line.project.name,
            "endpoint": endpoint.url,
            "model": endpoint.model,
            "max_tokens": endpoint.max_tokens,
            "parallel": self.limits.parallel,
            "sources": line.source_digests,
            "rules": digest_of({**rules, "system": dataset.system, "use": line.project.intended_use}),
        }

    def note_in_ledger(self, draft: Draft, job: dict[str, Any]) -> None:
        """Rows of the project leave for the endpoint: the ledger remembers whose word that was."""
        if draft.new:
            names = ("job", "endpoint", "model", "of")
            body = {"to": self.endpoint.generator, **{name: job[name] for name in names}}
            self.line.ledger.append(
                "export", digest_of(job), body, project=self.line.project.name, actor=self.line.actor
            )


def _open(name: str, endpoint: Endpoint, parallel: int, budget: float | None, out: Path) -> _Opening:
    if budget is not None and endpoint.prices == Prices():
        do = "say what tokens cost: --usd-per-1k-prompt-tokens, --usd-per-1k-completion-tokens"
        raise InputInvalid("no budget can hold without prices", "--max-cost-usd", do=do)
    from assets.line import open_line

    line = open_line(name, configuration.load())
    line.require_known_actor("data")
    return _Opening(line, endpoint, Limits(parallel, budget), out.resolve())


def _splits(line: "Line") -> Artifact | None:
    """The splits that were last made for the project, where they are still there."""
    head = line.store.head(line.project.name, "splits")
    try:
        return line.store.get(head["output"]) if head else None
    except InputInvalid:
        return None


def _labels(listed: str, instruction: str) -> list[str]:
    labels = [label.strip() for label in listed.split(",") if label.strip()]
    if not labels and not instruction:
        do = "give --labels a,b,c, or an --instruction for free answers"
        raise InputInvalid("says neither what to choose from nor what to do", "--labels", do=do)
    if len({label.casefold() for label in labels}) < len(labels):
        raise InputInvalid("two labels are the same", "--labels", listed, "name each once")
    return labels


def _texts_from(line: "Line", source: str, file: Path | None) -> tuple[list[Path], str]:
    """The files with the texts, and their encoding."""
    dataset = line.project.dataset
    if (file is None) == (not source):
        raise InputInvalid("name one of both", "--source, --file", do="a source of the project, or a file")
    if file is not None:
        return [file], dataset.encoding
    return line.landings[source].files, find_source(dataset, source).encoding or dataset.encoding


@contextmanager
def _working(
    opening: _Opening, job: dict[str, Any], total: int, quiet: bool
) -> Iterator[tuple[Draft, Callable[[Draft], None]]]:
    """The job's journal and its progress on stderr; an interruption says how to go on."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
    bar = Progress(*columns, TimeElapsedColumn(), console=console(stderr=True), disable=quiet)
    with opened(opening.out, job) as draft:
        task = bar.add_task(f"{job['job']} {opening.out.name}", total=total, said="")

        def progress(draft: Draft) -> None:
            done = len(draft.entries) if job["job"] == "label" else draft.count
            cost = f"{draft.usage.cost_usd:.4f} USD" if draft.usage.cost_usd else ""
            said = f"{draft.count} rows, {sum(draft.dropped.values())} dropped  {cost}"
            bar.update(task, completed=min(done, total), said=said)

        if draft.entries and not quiet:
            say(f"goes on with {draft.count} rows of {part_of(opening.out)}")
        try:
            with bar:
                yield draft, progress
        except KeyboardInterrupt:
            kept = f"{draft.count} rows are kept"
            do = "run the same command to go on"
            raise Interrupted("stopped", str(part_of(opening.out)), kept, do) from None


def _emit(as_json: bool, opening: _Opening, made: "Made") -> None:
    """What was made, and the lines that make it a source of the project."""
    out, folder = made.out, opening.line.loaded.folder
    entry = {
        "name": re.sub(r"\W+", "_", out.stem.lower()).strip("_").lstrip("0123456789_") or "synthetic",
        "path": str(out.relative_to(folder) if out.is_relative_to(folder) else out),
        "synthetic": True,
        "vendor": opening.endpoint.generator,
        "cost_usd": round(made.usage.cost_usd, 6),
    }
    lines = yaml.safe_dump([entry], sort_keys=False, allow_unicode=True)
    document = {**made.as_dict(), "generator": opening.endpoint.generator, "source_yaml": lines}

    def render(screen: Console) -> None:
        facts_of = made.as_dict()
        dropped = ", ".join(f"{n} {reason}" for reason, n in made.dropped.items()) or "none"
        screen.print(facts([(k.replace("_", " "), v) for k, v in {**facts_of, "dropped": dropped}.items()]))
        screen.print("\nto train on it, add to dataset.sources of project.yaml:\n")
        screen.print("".join(f"    {line}\n" for line in lines.splitlines()), end="")

    emit(as_json, document, render)
