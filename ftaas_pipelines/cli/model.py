"""`ftaas model`: adapters, what was scored and built of them, and the base models."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ftaas_pipelines import settings
from ftaas_pipelines.cli import artifacts
from ftaas_pipelines.cli.conversion import convert, push
from ftaas_pipelines.cli.output import Json, emit, table
from ftaas_pipelines.cli.replaying import replay
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.governance.ledger import open_ledger
from ftaas_pipelines.governance.requirement import policy_version
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.store import Artifact, short

app = typer.Typer()
app.command("replay")(replay)
app.command("convert")(convert)
app.command("push")(push)
_KINDS = ("adapter", "conversion", "comparison", "candidate", "evaluation", "bento", "release")

Digest = Annotated[str, typer.Argument(metavar="DIGEST", help="A digest, or its first 6 characters or more.")]


@app.command("list")
def list_(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only this project's.")] = "",
    as_json: Json = False,
) -> None:
    """List adapters, evaluations, Bentos and releases, newest last."""
    rows = artifacts.of_project(_KINDS, name)
    gist = ("adapter", "target", "method", "steps", "experiment", "family", "trainable_parameters", "splits")
    artifacts.emit_list(as_json, "models", rows, gist)


@app.command()
def show(digest: Digest, as_json: Json = False) -> None:
    """Show what an adapter, evaluation, Bento or release is made of, and how it was made."""
    artifacts.emit_one(as_json, artifacts.get(digest, _KINDS, "model"))


@app.command()
def card(
    subject: Annotated[
        str, typer.Argument(metavar="DIGEST|NAME", help="A release, an adapter, or a project's newest.")
    ],
    to: Annotated[Path | None, typer.Option("--to", "--out", help="Write it to this file instead.")] = None,
    as_json: Json = False,
) -> None:
    """Print the card of a release or an adapter, in Markdown."""
    from ftaas_pipelines.evaluation.cards.page import model_card

    config = settings.load()
    artifact = _release_or_adapter(subject)
    spec = artifact.attestation.get("spec", {})
    loaded = catalog.load_one(
        config.projects, config.policy, artifact.content.get("project") or spec.get("project", "")
    )
    policy = load_policy(config.policy)
    ledger = open_ledger(config, policy_version(policy))
    text = model_card(artifacts.store(), ledger, artifact, loaded.project, policy)
    if to:
        to.write_text(text, encoding="utf-8")
    said = f"written to {to}" if to else text.rstrip("\n")
    document = {"digest": artifact.digest, "card": text}
    emit(as_json, document, lambda screen: screen.out(said, highlight=False))


def _release_or_adapter(subject: str) -> Artifact:
    """By digest, or what a project last made: its release, else its newest adapter.

    Raises:
        InputInvalid: there is none.
    """
    store = artifacts.store()
    head = store.head(subject, "release")
    if head:
        return store.get(head["output"])
    made = [a for a in store.all("adapter") if a.attestation.get("spec", {}).get("project") == subject]
    if made:
        return made[-1]
    if not (len(subject) >= 6 and all(c in "0123456789abcdef" for c in subject)):
        raise InputInvalid(
            "no release and no adapter is made of it", "project", subject, f"`ftaas run {subject}`"
        )
    return artifacts.get(subject, ("release", "adapter"), "model card")


@app.command()
def verify(digest: Digest, as_json: Json = False) -> None:
    """Read every byte and compare it with the digest; exit 1 when one differs."""
    artifact = artifacts.get(digest, _KINDS, "model")
    problems = list(artifact.problems())
    document = {
        "ok": not problems,
        "digest": artifact.digest,
        "kind": artifact.kind,
        "files": len(artifact.manifest["files"]),
        "problems": [p.as_dict() for p in problems],
    }
    whole = f"{artifact.kind} {short(artifact.digest)}: {document['files']} files, every byte as it was made"
    text = "\n".join(str(p) for p in problems) or whole
    emit(as_json, document, lambda screen: screen.print(text))
    if problems:
        raise typer.Exit(1)


@app.command()
def bases(as_json: Json = False) -> None:
    """List base models: embedded ones, and well-known open ones; any Hub id or folder works as well."""
    from ftaas_pipelines.training.catalogue import bases as known
    from ftaas_pipelines.training.catalogue import estimate

    rows = [_base_row(base, estimate.memory_table(base)) for base in known.all_bases()]
    lines = [
        (
            r["id"],
            r["family"],
            _count(r["parameters"]),
            f"{r['context']:,}" if r["context"] else "",
            r["licence"] or "not stated",
            "yes" if r["chat_template"] else "no",
            " / ".join(f"{r['memory_gib'][name]:g}" for name in ("lora", "qlora", "full")),
            r["good_for"],
        )
        for r in rows
    ]
    columns = ("base model", "family", "weights", "context", "licence", "chat template", "GiB", "good for")

    def render(screen: Console) -> None:
        screen.print(table(columns, lines))
        screen.print(
            f"\nGiB: GPU memory to train by LoRA / QLoRA / every weight at {estimate.TOKENS:,} tokens or its "
            "context, batch 1, bf16, gradient checkpointing. Licence terms and limits: --json.\n"
        )
        embedded = [(r["id"], short(r["digest"]), r["path"]) for r in rows if r["path"]]
        screen.print(table(("comes with the platform", "digest", "folder"), embedded))

    emit(as_json, {"bases": rows}, render)


def _base_row(base: Any, memory_gib: dict[str, float]) -> dict[str, Any]:
    """A base as JSON; bytes, digest and path of those that lie here."""
    from ftaas_pipelines.inference import bases as base_models

    path = base_models.resolve(base.id, "main", artifacts.store().root) if base.embedded else None
    size = sum(file.stat().st_size for file in path.glob("*.safetensors")) if path else None
    return {
        "id": base.id,
        "family": base.family,
        "digest": base_models.digest(path) if path else None,
        "bytes": size,
        "path": str(path) if path else None,
        **base.model_dump(mode="json", exclude={"id", "family", "config"}),
        "memory_gib": memory_gib,
    }


def _count(number: int) -> str:
    return f"{number / 1e9:.1f} billion" if number >= 0.95e9 else f"{number / 1e6:.0f} million"
