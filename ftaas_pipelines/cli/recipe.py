"""`ftaas recipe`: what a recipe can be made of, and advice on which to take."""

from dataclasses import asdict, replace
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from ftaas_pipelines import settings
from ftaas_pipelines.cli import artifacts
from ftaas_pipelines.cli.output import Json, emit, facts, table
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.store import short
from ftaas_pipelines.training.catalogue.techniques import Technique, technique, techniques

app = typer.Typer()
_SHOWN = 12  # reasons against something that people read; all of them are in the JSON
_KINDS = {"method": "Methods", "adapter": "Adapters", "option": "Options"}


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the techniques a recipe can be made of: methods, adapters, options."""
    known = list(techniques().values())

    def render(screen: Console) -> None:
        for kind, title in _KINDS.items():
            rows = [
                (t.name, t.purpose, _times(t.memory_times), _times(t.compute_times))
                for t in known
                if t.kind == kind
            ]
            screen.print(table(("name", "what it is for", "memory", "compute"), rows, title=title))
            screen.print()
        screen.print(
            "memory: weights, gradients and optimizer; compute: of one record; both against SFT with"
        )
        screen.print("LoRA. `ftaas recipe explain NAME` says the rest.")

    emit(as_json, {"techniques": [_document(t) for t in known]}, render)


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="A technique of `ftaas recipe list`.")], as_json: Json = False
) -> None:
    """Say what a technique is for, what data it needs, what it costs, when to leave it, with its YAML."""
    found = technique(name)

    def render(screen: Console) -> None:
        pairs = [
            (found.name, found.title),
            ("for", found.purpose),
            ("bases", ", ".join(found.families)),
            ("records", ", ".join(found.records)),
            ("data", found.data),
            ("memory", found.memory),
            ("compute", found.compute),
            *(("not when" if i == 0 else "", words) for i, words in enumerate(found.not_when)),
            *(("paper", f"{p.authors} {p.year}: {p.title}, {p.url}") for p in found.papers),
        ]
        screen.print(facts((name, value) for name, value in pairs if value))
        screen.print("\nrecipes:")
        screen.print("".join(f"  {line}\n" for line in found.recipes.splitlines()), end="")

    emit(as_json, _document(found), render)


def _document(found: Technique) -> dict[str, Any]:
    return found.model_dump(mode="json")


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:g}x"


@app.command()
def advise(
    name: Annotated[str, typer.Argument(metavar="PROJECT", help="The project's name.")],
    budget_usd: Annotated[
        float | None, typer.Option(min=0, help="What all of it may cost. Default: the project's budget.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="How long it may take. Default: the project's; a day on a GPU, else 4 hours."
        ),
    ] = None,
    memory_gib: Annotated[
        float | None, typer.Option(min=0.1, help="Memory of the GPU, or of the machine without one.")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="A machine of the price table. Default: the project's, or this one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Propose a base and recipes for a project's data, task and budget, with reasons; changes nothing."""
    from ftaas_pipelines.training.catalogue import advice, bases

    chosen = settings.load()
    loaded = catalog.load_one(chosen.projects, chosen.policy, name)
    project, policy = loaded.project, load_policy(chosen.policy)
    rig = _rig(loaded, hardware)
    looked, where = _facts(loaded)
    question = advice.Question(
        facts=looked,
        task=project.task,
        rig=rig if memory_gib is None else replace(rig, memory_gib=memory_gib),
        usd=project.budget.usd if budget_usd is None else budget_usd,
        minutes=project.budget.training_minutes if minutes is None else minutes,
        licences=(policy.licences, project.licences),
    )
    found = advice.advise(question, bases.all_bases())
    one = found.proposal
    proposed = {"base_model": _base_model(one.base), "recipes": one.recipes}
    document = {
        "project": name,
        "looked_at": where,
        "facts": asdict(looked),
        "proposal": {
            **proposed,
            "technique": one.variant.named,
            "memory_gib": round(one.memory_gib, 2),
            "minutes": round(one.minutes, 1),
            "usd": round(one.usd, 4),
        },
        "reasons": found.reasons,
        "left_out": [{"name": what, "why": why} for what, why in found.left_out],
    }

    def render(screen: Console) -> None:
        screen.print(f"# Proposed for {name}, by {where}; copy it into project.yaml")
        screen.print(yaml.safe_dump(proposed, sort_keys=False, width=100), end="")
        screen.print("\nWhy", style="bold")
        for reason in found.reasons:
            screen.print(f"  {reason}")
        screen.print("\nLeft out", style="bold")
        screen.print(facts(found.left_out[:_SHOWN]))
        if len(found.left_out) > _SHOWN:
            screen.print(f"and {len(found.left_out) - _SHOWN} more; --json lists them")

    emit(as_json, document, render)


def _base_model(base: Any) -> dict[str, str]:
    return {"id": base.id, **({"licence": base.licence} if base.licence else {})}


def _rig(loaded: Loaded, hardware: str | None) -> Any:
    """The machine that would train: the one that is named, the budget's, or this one."""
    from ftaas_pipelines.projects import prices
    from ftaas_pipelines.training import machine
    from ftaas_pipelines.training.catalogue.estimate import Rig

    chosen, here = settings.load(), machine.found()
    budget = loaded.project.budget
    if hardware is not None:
        budget = budget.model_copy(update={"hardware": hardware, "region": "", "usd_per_hour": 0.0})
    gpus = prices.Gpus(here.gpus, here.gpu, here.gpu_memory_gib) if here.gpus else None
    terms = prices.terms(prices.load(chosen.price_table), budget, here.cores, here.memory_gib, gpus)
    threads = terms.cores if budget.hardware else chosen.threads
    return Rig.of(terms, max(1, threads))


def _facts(loaded: Loaded) -> tuple[Any, str]:
    """What the project's data holds, and what was looked at: its newest splits, else its raw files."""
    from ftaas_pipelines.training import data_facts, raw_facts

    store = artifacts.store()
    head = store.head(loaded.name, "splits")
    try:
        made = store.get(head["output"]) if head else None
    except InputInvalid:  # taken by `store gc`
        made = None
    if made is None:
        return raw_facts.of_sources(loaded), "the first rows of its files"
    return data_facts.of_split(made.path, at_most=20_000), f"splits {short(made.digest)}"
