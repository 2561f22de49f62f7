"""`ftaas data list|show|card|croissant`: what there is, and everything known of one version."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import artifacts
from ftaas_pipelines.cli.data.opening import KINDS, Digest, dataset_of, project_of
from ftaas_pipelines.cli.output import Json, emit, table
from ftaas_pipelines.store import Artifact, short

if TYPE_CHECKING:
    from ftaas_pipelines.data.versions.card import Card

_SAID = ("owner", "vendor", "licence", "consent")
Out = Annotated[Path | None, typer.Option(help="Write it to this file instead.")]


def list_(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only this project's.")] = "",
    as_json: Json = False,
) -> None:
    """List dataset versions and splits, newest last: owner, cost, licence, consent, sign-offs."""
    from ftaas_pipelines.data.versions import catalog
    from ftaas_pipelines.governance.ledger import open_ledger

    settings = configuration.load()
    store, rows = artifacts.store(), artifacts.of_project(KINDS, name)
    here = [store.get(row["digest"]) for row in rows]
    ledger = open_ledger(settings)
    known = {v.digest: v for v in catalog.versions([a for a in here if a.kind == "dataset"], store, ledger)}
    signed = catalog.sign_offs(ledger.entries("decision", authentic=True))
    lines: list[dict[str, Any]] = []
    for row, artifact in zip(rows, here, strict=True):
        line = {"digest": short(row["digest"]), "asset": row["asset"], "project": row["project"]}
        line |= {"made at": row["made_at"], "now": "current" if row["current"] else ""}
        size = sum(entry["bytes"] for entry in artifact.manifest["files"].values())
        if version := known.get(artifact.digest):
            row |= {k: v for k, v in version.as_dict().items() if k not in row}
            line |= {fact: ", ".join(version.said(fact)) for fact in _SAID}
            line |= {"records": version.records, "cost": f"{version.cost_usd:g} USD" * bool(version.cost_usd)}
        else:
            facts = catalog.splits_facts(artifact, signed)
            row |= {"dataset": artifact.content.get("dataset"), "counts": facts.counts, "bytes": size}
            row["sign_offs"] = [vars(s) for s in facts.sign_offs]
            line["records"] = " / ".join(f"{n} {split}" for split, n in facts.counts.items())
            line["signed"] = ", ".join(f"{s.role} {s.by}: {s.decision}" for s in facts.sign_offs)
        lines.append({**line, "size": f"{size / 1e6:.2f} MB"})
    names = ("digest", "asset", "project", "made at", "now", "records", "size", *_SAID, "cost", "signed")

    def render(screen: Console) -> None:
        told = [n for n in names if any(line.get(n) for line in lines)]
        body = table(told, ([line.get(n, "") for n in told] for line in lines))
        screen.print(body if lines else "nothing is made yet; see `ftaas run NAME --plan`")

    emit(as_json, {"data": rows}, render)


def show(digest: Digest, as_json: Json = False) -> None:
    """Show what a dataset version or splits hold, where every row went, and how they were made."""
    from ftaas_pipelines.data.versions import view

    artifact = artifacts.get(digest, KINDS, "data")
    if artifact.kind != "dataset":
        artifacts.emit_one(as_json, artifact)
        return
    aside = view.quarantined(artifact)
    tables = [rows_table(artifact.content.get("rows", {})), _findings_table(artifact), _aside_table(aside)]
    artifacts.emit_one(
        as_json,
        artifact,
        {"quarantine": aside},
        [t for t in tables if t.row_count],
        ("rows", "findings", "dropped") if artifact.content.get("rows") else ("findings",),
    )


def rows_table(rows: dict[str, dict[str, int]]) -> Table:
    """In = kept + each reason, by source and in all."""
    reasons = sorted({name for counts in rows.values() for name in counts} - {"in", "kept"})
    names = ["in", "kept", *reasons]
    lines = [(source, *(counts.get(n, 0) for n in names)) for source, counts in sorted(rows.items())]
    if len(lines) > 1:
        lines.append(("all", *(sum(counts.get(n, 0) for counts in rows.values()) for n in names)))
    return table(("source", *names), lines, "Rows: in = kept + each reason")


def _findings_table(artifact: Artifact) -> Table:
    found: dict[str, Any] = artifact.content.get("findings", {})
    return table(("detector", "findings"), found.items(), "Findings, before treatment")


def _aside_table(aside: list[dict[str, Any]]) -> Table:
    lines = [(f"{q['source']}:{q['row']}", short(q["sha256"]), q["what"]) for q in aside]
    return table(("row", "file", "what"), lines, "Rows set aside: they could not be read (the first ones)")


def card(digest: Digest, out: Out = None, as_json: Json = False) -> None:
    """Print the card of a dataset version, in Markdown."""
    from ftaas_pipelines.data.versions.card import render

    made = open_card(digest)
    text = render(made)
    _deliver(as_json, {"digest": made.version.digest, "card": text}, text, out)


def croissant(digest: Digest, out: Out = None, as_json: Json = False) -> None:
    """Print Croissant 1.0 metadata of a dataset version, in JSON-LD."""
    from ftaas_pipelines.data.versions.croissant import metadata

    document = metadata(open_card(digest))
    _deliver(as_json, document, json.dumps(document, indent=1, ensure_ascii=False) + "\n", out)


def open_card(digest: str) -> "Card":
    """What the card of this dataset version, or of the one behind these splits, is made of."""
    from ftaas_pipelines.data.versions import card, catalog
    from ftaas_pipelines.governance.ledger import open_ledger

    settings = configuration.load()
    artifact = dataset_of(artifacts.get(digest, KINDS, "data"))
    ledger = open_ledger(settings)
    return card.gather(artifact, project_of(artifact), catalog.version(artifact, artifacts.store(), ledger))


def _deliver(as_json: bool, document: Any, text: str, out: Path | None) -> None:
    if out:
        out.write_text(text, encoding="utf-8")

    def render(screen: Console) -> None:
        screen.out(f"written to {out}" if out else text.rstrip("\n"), highlight=False)

    emit(as_json, document, render)
