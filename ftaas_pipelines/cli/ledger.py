"""`ftaas ledger`: the record of everything decided, released, looked at, revoked."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ftaas_pipelines import settings
from ftaas_pipelines.cli.output import Json, emit, facts, table
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.governance.ledger import GENESIS, Entry, open_ledger
from ftaas_pipelines.governance.requirement import policy_version
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.store import short

app = typer.Typer()

AsOf = Annotated[
    str, typer.Option(metavar="DATE", help="Only what stood there then: 2026-05-01, or with T12:30:00Z.")
]


def checked(as_of: str) -> str | None:
    """The date as the ledger compares it: its times are UTC in ISO 8601, so text order is time order.

    Raises:
        InputInvalid: it is no date.
    """
    if not as_of:
        return None
    try:
        moment = datetime.fromisoformat(as_of)
    except ValueError:
        do = "write it as 2026-05-01 or 2026-05-01T12:30:00Z"
        raise InputInvalid("is not a date", "--as-of", as_of, do) from None
    if len(as_of) <= len("2026-05-01"):
        return moment.strftime("%Y-%m-%d")  # all of that day
    utc = moment.astimezone(UTC) if moment.tzinfo else moment
    return utc.strftime("%Y-%m-%dT%H:%M:%SZ")


@app.command()
def show(
    project: Annotated[str, typer.Option(help="Only this project.")] = "",
    kind: Annotated[str, typer.Option(help="Only this kind, such as decision or grant.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="Only the newest so many; 0: all.")] = 0,
    as_of: AsOf = "",
    as_json: Json = False,
) -> None:
    """List the entries, oldest first."""
    entries = open_ledger(settings.load()).entries(
        kind or None, project=project or None, as_of=checked(as_of), limit=limit or None
    )
    rows = [
        (e.seq, e.at, e.kind, e.project, short(e.subject), e.actor, e.role, e.environment, _gist(e))
        for e in entries
    ]
    columns = ("seq", "at", "kind", "project", "subject", "actor", "role", "environment", "what")

    def render(screen: Console) -> None:
        screen.print(table(columns, rows) if rows else "the ledger holds no such entry")

    emit(as_json, {"entries": [asdict(e) for e in entries]}, render)


def _gist(entry: Entry) -> str:
    """The words of an entry that a person scans for."""
    keys = ("decision", "gate", "asset", "reason", "why", "comment")
    return ", ".join(str(entry.body[key]) for key in keys if entry.body.get(key))


@app.command()
def verify(as_of: AsOf = "", as_json: Json = False) -> None:
    """Recompute the chain and every signature; exit 1 at the first that does not hold.

    With --as-of, entries and head are given as they were then, to compare with what was noted down.
    """
    found = open_ledger(settings.load()).verify(checked(as_of))
    bad = found.first_bad
    text = f"{found.entries} entries, head {short(found.head)}: the chain holds"
    if bad:
        text = f"{found.entries} entries; the chain breaks at entry {bad['seq']}: {bad['why']}"
    document: dict[str, Any] = {
        "ok": found.ok,
        "entries": found.entries,
        "head": found.head,
        "first_bad": bad,
    }
    if found.warnings:
        document["warnings"] = found.warnings

    def render(screen: Console) -> None:
        screen.print(text)
        for warning in found.warnings:
            screen.print(f"warning: {warning}")

    emit(as_json, document, render)
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def export(as_of: AsOf = "", as_json: Json = False) -> None:
    """Print the whole ledger: one entry a line, or one document with --json."""
    ledger, until = open_ledger(settings.load()), checked(as_of)

    def entries() -> Iterator[dict[str, Any]]:
        for row in ledger.rows():
            if until is None or row.at <= until + "~":
                yield asdict(Entry.of(row))

    def render(screen: Console) -> None:
        for entry in entries():
            screen.out(json.dumps(entry, ensure_ascii=False, sort_keys=True), highlight=False)

    found = list(entries()) if as_json else []
    head = found[-1]["hash"] if found else GENESIS
    emit(as_json, {"entries": found, "head": head, "as_of": as_of or None}, render)


@app.command()
def head(as_json: Json = False) -> None:
    """Sign the newest entry's hash, keep it where heads are kept, and print it."""
    signed = open_ledger(settings.load()).export_head()
    document = asdict(signed) if signed else {"seq": 0, "hash": GENESIS}
    emit(as_json, document, lambda screen: screen.print(facts(document.items())))


@app.command()
def backup(
    to: Annotated[Path, typer.Option("--to", help="A file that is not there yet.")], as_json: Json = False
) -> None:
    """Copy the whole ledger, verified, into one signed file (JSON lines, Zstandard)."""
    from ftaas_pipelines.governance import ledger_backup

    made = ledger_backup.write(open_ledger(settings.load()), to)
    text = f"{made.entries} entries up to {short(made.head)} in {made.file}"
    emit(as_json, asdict(made), lambda screen: screen.print(text))


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A file that `ftaas ledger backup` made.")],
    accept_loss: Annotated[
        str, typer.Option(metavar="REASON", help="Why entries after the backup may be lost; is recorded.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Bring back a backup, into an empty ledger or one that ends within it."""
    from ftaas_pipelines.governance import ledger_backup

    chosen = settings.load()
    ledger = open_ledger(chosen, policy_version(load_policy(chosen.policy)))
    entry = ledger_backup.restore(ledger, file, by=chosen.who, accept_loss=accept_loss)
    text = f"{entry.body['entries']} entries stand again; entry {entry.seq} records it"
    emit(as_json, {"entry": asdict(entry)}, lambda screen: screen.print(text))


@app.command()
def grants(
    role: Annotated[str, typer.Argument(help="The PostgreSQL role that the platform connects as.")],
    as_json: Json = False,
) -> None:
    """Print SQL for a PostgreSQL role that may read and append, and nothing else."""
    from ftaas_pipelines.governance import ledger_schema

    lines = ledger_schema.grants(role)
    emit(as_json, {"sql": lines}, lambda screen: screen.print("\n".join(lines)))
