"""`ftaas data diff|export`: two versions compared, and rows taken out of the platform."""

import enum
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import artifacts
from ftaas_pipelines.cli.data.catalog import open_card
from ftaas_pipelines.cli.data.opening import KINDS, Digest, dataset_of, project_of
from ftaas_pipelines.cli.output import Json, emit, facts, table
from ftaas_pipelines.errors import Refused
from ftaas_pipelines.governance.requirement import policy_version
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import Artifact, short

_SHOWN_CHARACTERS = 200


class Target(enum.StrEnum):
    """The shapes of `data.export`, as the command line offers them."""

    openai = "jsonl_openai"
    bedrock = "jsonl_bedrock"
    parquet = "parquet"
    hf = "hf"


def diff(
    before: Annotated[
        str, typer.Argument(metavar="A", help="The digest of a dataset version, or of splits.")
    ],
    after: Annotated[str, typer.Argument(metavar="B", help="The one to compare with it.")],
    limit: Annotated[int, typer.Option(min=0, help="At most so many rows of each kind.")] = 20,
    as_json: Json = False,
) -> None:
    """Say which rows came, went or changed from version A to version B."""
    from ftaas_pipelines.data.versions.diff import compare

    old, new = (dataset_of(artifacts.get(digest, KINDS, "data")) for digest in (before, after))
    found = compare(old, new, limit)

    def render(screen: Console) -> None:
        counts = [(name.replace("_", " "), n) for name, n in found.counts.items()]
        screen.print(facts([("from", short(found.before)), ("to", short(found.after)), *counts]))
        lines = [("came", r["record_id"], "", _brief(r)) for r in found.came]
        lines += [("went", r["record_id"], f"{_brief(r)}  ({r['because']})", "") for r in found.went]
        lines += [("changed", r["record_id"], _brief(r["before"]), _brief(r["after"])) for r in found.changed]
        lines += [
            ("edited", r["after"]["record_id"], _brief(r["before"]), _brief(r["after"])) for r in found.edited
        ]
        if lines:
            screen.print()
            screen.print(table(("", "record", "A", "B"), ((w, short(i), a, b) for w, i, a, b in lines)))
        if found.went_because:
            said = ", ".join(f"{n} {reason}" for reason, n in found.went_because.items())
            screen.print(f"\nwent because: {said}")

    emit(as_json, asdict(found), render)


def export(
    digest: Digest,
    to: Annotated[Target, typer.Option(help="The shape to write.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    split: Annotated[str, typer.Option(help="Only this split (of splits).")] = "",
    as_json: Json = False,
) -> None:
    """Write a dataset version or its splits for other tools; the ledger remembers who took what."""
    from ftaas_pipelines.data.versions.export import export
    from ftaas_pipelines.governance.ledger import open_ledger

    settings = configuration.load()
    artifact = artifacts.get(digest, KINDS, "data")
    project = _require_known_actor(artifact, settings)
    made = export(artifact, to.value, out, split or None, open_card(digest))
    body: dict[str, Any] = {"to": to.value, "split": split or None, "records": made.records}
    ledger = open_ledger(settings, policy_version(load_policy(settings.policy)))
    ledger.append("export", artifact.digest, body, project=project, actor=settings.who)
    document = {"digest": artifact.digest, "folder": str(made.folder), **body, "files": made.files}
    counts = ", ".join(f"{n} {part}" for part, n in made.records.items())
    emit(as_json, document, lambda screen: screen.print(f"{counts} written to {made.folder} ({to.value})"))


def _require_known_actor(artifact: Artifact, settings: Settings) -> str:
    """Above sensitivity `internal`, or where nobody says what it is, only a named person takes rows out.

    Returns:
        The project's name.

    Raises:
        Refused: nobody knows who asks.
    """
    name = artifact.attestation.get("spec", {}).get("project", "")
    project = project_of(artifact)
    sensitivity = project.data_sensitivity if project else "unknown"
    if "@" not in settings.who and sensitivity not in ("public", "internal"):
        raise Refused(
            f"nobody knows who takes out {sensitivity} data",
            f"{name}/{artifact.kind} {short(artifact.digest)}",
            settings.who,
            "set FTAAS_ACTOR to your e-mail, or map the OS user in FTAAS_ACTOR_MAP",
        )
    return name


def _brief(row: dict[str, Any]) -> str:
    text = f"{row['prompt']} -> {row['answer']}"
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " …"
