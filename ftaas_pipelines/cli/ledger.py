"""`ftaas ledger`: the record of everything decided, released, looked at, revoked."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console

from ftaas_pipelines import settings
from ftaas_pipelines.cli.output import Json, emit, table
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.governance.ledger import GENESIS, Entry, Ledger
from ftaas_pipelines.store import short

app = typer.Typer()

AsOf = Annotated[
    str, typer.Option(metavar="DATE", help="Only what stood there then: 2026-05-01, or with T12:30:00Z.")
]


def _open() -> Ledger:
    chosen = settings.load()
    return Ledger(chosen.ledger, chosen.home)


def _checked(as_of: str) -> str | None:
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
    as_of: AsOf = "",
    as_json: Json = False,
) -> None:
    """List the entries, oldest first."""
    entries = _open().entries(kind or None, project=project or None, as_of=_checked(as_of))
    rows = [(e.seq, e.at, e.kind, e.project, short(e.subject), e.actor, _gist(e)) for e in entries]
    columns = ("seq", "at", "kind", "project", "subject", "actor", "what")

    def render(screen: Console) -> None:
        screen.print(table(columns, rows) if rows else "the ledger holds no such entry")

    emit(as_json, {"entries": [asdict(e) for e in entries]}, render)


def _gist(entry: Entry) -> str:
    """The words of an entry that a person scans for."""
    keys = ("role", "environment", "decision", "gate", "asset", "comment")
    return ", ".join(str(entry.body[key]) for key in keys if entry.body.get(key))


@app.command()
def verify(as_json: Json = False) -> None:
    """Recompute the chain and every signature; exit 1 at the first that does not hold."""
    found = _open().verify()
    bad = found.first_bad
    text = f"{found.entries} entries, head {short(found.head)}: the chain holds"
    if bad:
        text = f"{found.entries} entries; the chain breaks at entry {bad['seq']}: {bad['why']}"
    emit(as_json, asdict(found), lambda screen: screen.print(text))
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def export(as_of: AsOf = "", as_json: Json = False) -> None:
    """Print the whole ledger: one entry a line, or one document with --json."""
    entries: list[dict[str, Any]] = [asdict(e) for e in _open().entries(as_of=_checked(as_of))]
    head = entries[-1]["hash"] if entries else GENESIS

    def render(screen: Console) -> None:
        for entry in entries:
            screen.out(json.dumps(entry, ensure_ascii=False, sort_keys=True), highlight=False)

    emit(as_json, {"entries": entries, "head": head, "as_of": as_of or None}, render)
