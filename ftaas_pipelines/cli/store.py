"""`ftaas store`: the bytes of every artifact."""

from typing import Annotated

import typer
from rich.console import Console

from ftaas_pipelines import settings
from ftaas_pipelines.cli.output import Json, emit, table
from ftaas_pipelines.store import Store, short

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
    keep_days: Annotated[
        float, typer.Option(min=0, help="Leave alone what was made or used in so many days.")
    ] = 7.0,
    dry_run: Annotated[bool, typer.Option(help="Only say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Remove drafts, finished work and artifacts that nobody needs.

    What the ledger, a deployment or a project's current state names stays, with all it was made of.
    Answers in the inference logs go when their days are over, also where no endpoint runs.
    """
    from ftaas_pipelines.governance import retention
    from ftaas_pipelines.governance.ledger import open_ledger

    chosen = settings.load()
    ledger = open_ledger(chosen)
    found = retention.collect(
        Store(chosen.store_path), ledger, [chosen.home / "deployments"], keep_days, dry_run
    )
    if not dry_run:
        _forget_answers(chosen)
    gone = [{"kind": a.kind, "digest": a.digest} for a in found.artifacts]
    counts = {name: len(getattr(found, name)) for name in ("drafts", "work", "objects")}
    document = {"dry_run": dry_run, "artifacts": gone, **counts, "kept": found.kept, "bytes": found.bytes}
    verb = "would go" if dry_run else "removed"

    def render(screen: Console) -> None:
        if gone:
            screen.print(table(("kind", "digest"), ((a["kind"], short(a["digest"])) for a in gone)))
        said = ", ".join(f"{n} {name}" for name, n in counts.items())
        screen.print(
            f"{verb}: {len(gone)} artifacts, {said}; {found.bytes / 1e6:.1f} MB; {found.kept} artifacts stay"
        )

    emit(as_json, document, render)


def _forget_answers(chosen: settings.Settings) -> None:
    """Drop what is past its days in each environment's inference log; a running endpoint does so itself."""
    from ftaas_pipelines.serving import answer_upkeep
    from ftaas_pipelines.serving.desired import Folder

    for environment in settings.ENVIRONMENTS:
        folder = Folder(chosen.home, environment)
        if folder.answers.exists():
            projects = folder.desired().projects
            days = {name: entry.terms.answers.keep_days for name, entry in projects.items()}
            answer_upkeep.tidy(folder.answers, by_project=days)
