"""`ftaas store`: the bytes of every artifact."""

from typing import Annotated

import typer

from ftaas_pipelines import settings
from ftaas_pipelines.cli.output import Json, emit
from ftaas_pipelines.store import Store

app = typer.Typer()


@app.command()
def verify(as_json: Json = False) -> None:
    """Read every byte of every artifact and compare it with its digest."""
    store = Store(settings.load().store_path)
    count, problems = len(store.all()), store.verify()
    document = {"ok": not problems, "artifacts": count, "problems": [p.as_dict() for p in problems]}
    lines = [f"{count} artifacts, {'all whole' if not problems else f'{len(problems)} problems'}"]
    lines += [f"  {p}" for p in problems]
    emit(as_json, document, lambda screen: screen.print("\n".join(lines)))
    if problems:
        raise typer.Exit(1)


@app.command()
def gc(
    keep_days: Annotated[float, typer.Option(min=0, help="Leave drafts younger than this alone.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Remove drafts that nobody writes any more; finished artifacts are never touched."""
    removed = Store(settings.load().store_path).gc(keep_days)
    emit(as_json, {"removed": removed}, lambda screen: screen.print(f"{removed} abandoned drafts removed"))
