"""`ftaas trace`: from an answer or a digest back to the rows and the people behind it."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import output
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.serving import deployments
from ftaas_pipelines.store import Artifact, Store

_BEHIND = ("release", "bento", "evaluation", "adapter", "splits", "dataset")


def trace(
    subject: Annotated[str, typer.Argument(help="A response id (chatcmpl-…) or a digest.")],
    as_json: output.Json = False,
) -> None:
    """Everything behind an answer or a digest, down to the rows."""
    settings = configuration.load()
    store, ledger = Store(settings.store_path), Ledger(settings.ledger, settings.home)
    answer: dict[str, Any] | None = None
    digest = subject
    if subject.startswith(("chatcmpl-", "cmpl-")):
        answer = deployments.response(settings, subject)
        if answer is None:
            raise InputInvalid(
                "no answer with this id is on record", "response", subject, "mind the whole id"
            )
        digest = str(answer["release"])
    chain = _chain(store, store.get(digest))
    document = {
        "subject": subject,
        "answer": answer,
        "artifacts": [
            {
                "kind": a.kind,
                "digest": a.digest,
                "folder": str(a.path),
                "content": {k: v for k, v in a.content.items() if k != "scores"},
                "sources": a.attestation.get("sources", {}),
                "intact": not list(a.problems()),
                "ledger": [
                    {"seq": e.seq, "at": e.at, "kind": e.kind, "by": e.actor, **_said(e.body)}
                    for e in ledger.entries(subject=a.digest)
                ],
            }
            for a in chain
        ],
    }
    output.emit(as_json, document, lambda screen: _show(screen, document))


def _chain(store: Store, start: Artifact) -> list[Artifact]:
    """The artifact and everything it was made from, nearest first."""
    found: dict[str, Artifact] = {}
    todo = [start]
    while todo:
        artifact = todo.pop(0)
        if artifact.digest in found:
            continue
        found[artifact.digest] = artifact
        for name in _BEHIND:
            digest = artifact.content.get(name)
            if isinstance(digest, str) and len(digest) == 64:
                todo.append(store.get(digest))
    order = {kind: i for i, kind in enumerate(_BEHIND)}
    return sorted(found.values(), key=lambda a: order.get(a.kind, len(order)))


def _said(body: dict[str, Any]) -> dict[str, Any]:
    return {k: body[k] for k in ("role", "decision", "comment", "environment", "gate") if body.get(k)}


def _show(screen: Console, document: dict[str, Any]) -> None:
    tree = Tree(Text(document["subject"], style="bold"))
    answer = document["answer"]
    if answer:
        tree.add(Text(f"answered at {answer['at']} by {answer['project']} in {answer['environment']}"))
    for artifact in document["artifacts"]:
        intact = "" if artifact["intact"] else "  CHANGED SINCE IT WAS MADE"
        branch = tree.add(Text(f"{artifact['kind']} {artifact['digest']}{intact}"))
        for entry in artifact["ledger"]:
            said = ", ".join(f"{k} {v}" for k, v in entry.items() if k not in ("seq", "at", "kind", "by"))
            branch.add(
                Text(f"#{entry['seq']} {entry['at']} {entry['kind']} by {entry['by']}  {said}", style="dim")
            )
        if artifact["kind"] == "dataset":
            for name, digest in artifact["sources"].items():
                branch.add(Text(f"source {name} {digest}"))
    screen.print(tree)
