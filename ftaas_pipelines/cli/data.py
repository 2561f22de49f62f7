"""`ftaas data`: dataset versions, splits, and their rows."""

from typing import Annotated

import typer
from rich.console import Console

from ftaas_pipelines.cli import artifacts
from ftaas_pipelines.cli.output import Json, emit, table
from ftaas_pipelines.store import short

app = typer.Typer()
_KINDS = ("dataset", "splits")

Digest = Annotated[str, typer.Argument(metavar="DIGEST", help="A digest, or its first 6 characters or more.")]


@app.command("list")
def list_(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only this project's.")] = "",
    as_json: Json = False,
) -> None:
    """List dataset versions and splits, newest last."""
    rows = artifacts.of_project(_KINDS, name)
    artifacts.emit_list(as_json, "data", rows, ("records", "dropped", "counts", "dataset"))


@app.command()
def show(digest: Digest, as_json: Json = False) -> None:
    """Show what a dataset version or splits hold, and how they were made."""
    artifacts.emit_one(as_json, artifacts.get(digest, _KINDS, "data"))


@app.command()
def rows(
    digest: Digest,
    limit: Annotated[int, typer.Option(min=1, help="At most so many rows.")] = 20,
    split: Annotated[
        str, typer.Option(help="train, validation, test or challenge_<name>; splits show train by default.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Print rows, by record id."""
    from ftaas_pipelines.data import view

    artifact = artifacts.get(digest, _KINDS, "data")
    found = view.rows(artifact, split or None, limit)
    document = {"digest": artifact.digest, "kind": artifact.kind, "split": split or None, "rows": found}
    lines = [(short(row["record_id"]), row["source"], row["prompt"], row["answer"]) for row in found]

    def render(screen: Console) -> None:
        screen.print(table(("record", "source", "prompt", "answer"), lines) if lines else "no such rows")

    emit(as_json, document, render)
