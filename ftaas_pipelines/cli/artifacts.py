"""Artifacts as `ftaas data` and `ftaas model` list and show them."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ftaas_pipelines import settings
from ftaas_pipelines.cli.output import emit, facts, table
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.store import Artifact, Store, short


def store() -> Store:
    return Store(settings.load().store_path)


def get(digest: str, kinds: Sequence[str], noun: str) -> Artifact:
    """The artifact with this digest, or the beginning of one.

    Raises:
        InputInvalid: there is none, or it is of another kind than the noun speaks of.
    """
    artifact = store().get(digest)
    if artifact.kind not in kinds:
        do = f"`ftaas {noun}` speaks of {', '.join(kinds)}"
        raise InputInvalid(f"is of kind {artifact.kind}", short(artifact.digest), do=do)
    return artifact


def of_project(kinds: Sequence[str], project: str) -> list[dict[str, Any]]:
    """What was made, oldest first: of one project, or of all where `project` is empty."""
    here = store()
    rows: list[dict[str, Any]] = []
    for artifact in here.all():
        if artifact.kind not in kinds:
            continue
        spec = artifact.attestation.get("spec", {})
        made_for, asset = spec.get("project", ""), spec.get("asset", artifact.kind)
        head = here.head(project or made_for, asset) or {}
        current = head.get("output") == artifact.digest
        if project and project != made_for and not current:
            continue
        rows.append(
            {
                "digest": artifact.digest,
                "kind": artifact.kind,
                "asset": asset,
                "project": made_for,
                "made_at": artifact.attestation["made_at"],
                "current": current,
                "content": artifact.content,
            }
        )
    return rows


def emit_list(as_json: bool, key: str, rows: list[dict[str, Any]], gist: Sequence[str]) -> None:
    """Print a list; `gist` names the content facts that stand in the last column."""
    columns = ("digest", "asset", "project", "made at", "", "content")
    lines = [
        (
            short(row["digest"]),
            row["asset"],
            row["project"],
            row["made_at"],
            "current" if row["current"] else "",
            ", ".join(f"{name} {_brief(row['content'][name])}" for name in gist if name in row["content"]),
        )
        for row in rows
    ]

    def render(screen: Console) -> None:
        screen.print(table(columns, lines) if lines else "nothing is made yet; see `ftaas run NAME --plan`")

    emit(as_json, {key: rows}, render)


def emit_one(
    as_json: bool,
    artifact: Artifact,
    more: Mapping[str, Any] | None = None,
    tables: Sequence[Table] = (),
    in_tables: Sequence[str] = (),
) -> None:
    """Print one artifact: what it is made of, and the circumstances of its making.

    Args:
        more: facts to add to the JSON document.
        tables: what people read between the two.
        in_tables: content facts that stand in those tables instead.
    """
    files = artifact.manifest["files"]
    document = {
        "digest": artifact.digest,
        "kind": artifact.kind,
        "path": str(artifact.path),
        "content": artifact.content,
        "files": files,
        "attestation": artifact.attestation,
        **(more or {}),
    }
    size = sum(entry["bytes"] for entry in files.values())
    made = {k: v for k, v in artifact.attestation.items() if k not in ("spec", "grant")}

    def render(screen: Console) -> None:
        screen.print(
            facts(
                [
                    (artifact.kind, artifact.digest),
                    ("folder", artifact.path),
                    ("files", f"{len(files)}, {size / 1e6:.2f} MB"),
                    *((n, _brief(value)) for n, value in artifact.content.items() if n not in in_tables),
                ]
            )
        )
        for part in tables:
            screen.print()
            screen.print(part)
        screen.print("\nHow it was made (no part of the digest)", style="bold")
        screen.print(facts((name, _brief(value)) for name, value in made.items()))

    emit(as_json, document, render)


def _brief(value: Any) -> str:
    """A value on one line: digests shortened, mappings as `name value`."""
    if isinstance(value, str):
        return short(value) if len(value) == 64 else value
    if isinstance(value, dict):
        return ", ".join(f"{name} {_brief(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(_brief(inner) for inner in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
