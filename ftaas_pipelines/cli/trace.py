"""`ftaas trace`: from an answer or a digest back to the rows and the people behind it, now or at a date."""

import json
import re
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import output
from ftaas_pipelines.cli.ledger import AsOf, checked
from ftaas_pipelines.cli.trace_record import Record, read, words
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.governance.ledger import Ledger, open_ledger
from ftaas_pipelines.serving import answers
from ftaas_pipelines.store import Artifact, Store, short

_BEHIND = ("release", "bento", "evaluation", "conversion", "adapter", "splits", "dataset")
_LEADING = (*_BEHIND, "init_from", "reward_model")
"""Names of an artifact's content that lead to another: by kind, and the earlier adapters of a chain."""
_PREFIX = re.compile(r"[0-9a-f]{8,63}")


def trace(
    subject: Annotated[
        str, typer.Argument(help="A response id (chatcmpl-…), a digest, or the start of one (8 characters).")
    ],
    as_of: AsOf = "",
    as_json: output.Json = False,
) -> None:
    """Everything behind an answer or a digest, down to the rows; with --as-of, what stood there then."""
    until = checked(as_of)
    settings = configuration.load()
    store, ledger = Store(settings.store_path), open_ledger(settings)
    answer: dict[str, Any] | None = None
    digest = subject
    if subject.startswith(("chatcmpl-", "cmpl-")):
        answer = answers.response(settings.home, subject)
        if answer is None:
            raise InputInvalid(
                "no answer with this id is on record", "response", subject, "mind the whole id"
            )
        digest = str(answer["release"])
        texts = [answer.pop("prompt"), answer.pop("answer")]  # `ftaas answers show` shows them
        answer["texts"] = "erased" if answer["erased_at"] else "kept" if any(texts) else "not kept"
    # A request that was refused before a release was chosen has nothing behind it.
    chain = _chain(store, store.get(_whole(store, digest))) if digest else []
    document = {
        "subject": subject,
        "as_of": as_of or None,
        "answer": answer,
        "artifacts": [_artifact(ledger, a, until) for a in chain],
    }
    output.emit(as_json, document, lambda screen: _show(screen, document))


def _artifact(ledger: Ledger, artifact: Artifact, until: str | None) -> dict[str, Any]:
    named = json.dumps([artifact.manifest, artifact.attestation])
    record = read(ledger, artifact.digest, set(re.findall(r"\b[0-9a-f]{64}\b", named)))
    then, since = record.parted(until)
    facts: dict[str, Any] = {
        "kind": artifact.kind,
        "digest": artifact.digest,
        "folder": str(artifact.path),
        "content": {k: v for k, v in artifact.content.items() if k != "scores"},
        "sources": artifact.attestation.get("sources", {}),
        "intact": not list(artifact.problems()),
        "signed": then.signed(),
        "ledger": then.as_dicts(),
    }
    if until:
        facts |= {"since": since.as_dicts(), "signed_now": Record([*then.lines, *since.lines]).signed()}
    return facts


def _whole(store: Store, subject: str) -> str:
    """The digest that begins like this.

    Raises:
        InputInvalid: none or several do.
    """
    if not _PREFIX.fullmatch(subject):
        return subject
    found = sorted({a.digest: a.kind for a in store.all() if a.digest.startswith(subject)}.items())
    if len(found) == 1:
        return found[0][0]
    got = ", ".join(f"{kind} {short(digest)}" for digest, kind in found) or subject
    what = "several artifacts begin like this" if found else "no artifact in the store begins like this"
    raise InputInvalid(what, "digest", got, "give more of it; `ftaas ledger show` lists digests")


def _chain(store: Store, start: Artifact) -> list[Artifact]:
    """The artifact and everything it was made from, nearest first."""
    found: dict[str, Artifact] = {}
    todo = [start]
    while todo:
        artifact = todo.pop(0)
        if artifact.digest in found:
            continue
        found[artifact.digest] = artifact
        for name in _LEADING:
            digest = artifact.content.get(name)
            if isinstance(digest, str) and len(digest) == 64:
                todo.append(store.get(digest))
    order = {kind: i for i, kind in enumerate(_BEHIND)}
    return sorted(found.values(), key=lambda a: order.get(a.kind, len(order)))


def _show(screen: Console, document: dict[str, Any]) -> None:
    tree = Tree(Text(document["subject"], style="bold"))
    answer, date = document["answer"], document["as_of"]
    if answer:
        _show_answer(tree, answer)
    for artifact in document["artifacts"]:
        head = Text.assemble((artifact["kind"], "bold"), f" {artifact['digest']}")
        branch = tree.add(head if artifact["intact"] else head.append("  CHANGED SINCE IT WAS MADE", "red"))
        for name, digest in artifact["sources"].items() if artifact["kind"] == "dataset" else ():
            branch.add(Text(f"source {name} {digest}"))
        _show_signed(branch, f"signed on {date}" if date else "signed", artifact["signed"])
        if date and artifact["signed_now"] != artifact["signed"]:
            _show_signed(branch, "signed now", artifact["signed_now"])
        _show_lines(branch, f"up to {date}" if date else "", artifact["ledger"])
        _show_lines(branch, f"after {date}", artifact.get("since", []))
    screen.print(tree)


def _show_answer(tree: Tree, answer: dict[str, Any]) -> None:
    """Who asked, what became of it, how long it took, what the guard and the callers said."""
    where = f"{answer['project'] or 'nobody'} in {answer['environment']}"
    variant = f", {answer['variant']}" if answer["variant"] else ""
    tree.add(Text(f"answered at {answers.said_at(answer['at'])} by {where}{variant}"))
    tree.add(Text(f"asked by {answer['caller'] or 'nobody known'}; texts {answer['texts']}"))
    how = answer["error"] or answer["finish_reason"]
    tokens = f"{answer['prompt_tokens']}+{answer['completion_tokens']} tokens, {answer['cost_usd']:.6f} USD"
    tree.add(Text(f"status {answer['status']} ({how}), {tokens}"))
    first, queue = answer["first_token_ms"], answer["queue_ms"]
    tree.add(Text(f"{answer['total_ms']:.0f} ms: queue {queue:.0f}, first token at {first:.0f}"))
    for seen in answer["guard"] or ():
        what = f"{seen['rule']} {seen['kind']}: {seen['action']}, {seen['count']} times"
        tree.add(Text(f"guard, {seen['where']}: {what}", "yellow"))
    for one in answer["feedback"]:
        words = "; ".join(str(one[name]) for name in ("thumb", "correction", "comment") if one[name])
        tree.add(Text(f"feedback at {answers.said_at(one['at'])} by {one['caller']}: {words or 'erased'}"))


def _show_signed(branch: Tree, title: str, signed: list[dict[str, Any]]) -> None:
    for one in signed:
        where = f" for {one['environment']}" if one["environment"] else ""
        text = Text(f"{title}: {one['role']} {one['by']}{where}: {one['decision']} at {one['at']}")
        if one["withdrawn"]:
            text.append(f", withdrawn at {one['withdrawn']['at']}: {one['withdrawn']['why']}", "yellow")
        branch.add(text)


def _show_lines(branch: Tree, title: str, lines: list[dict[str, Any]]) -> None:
    if lines and title:
        branch = branch.add(Text(title))
    for line in lines:
        text = Text(f"#{line['seq']} {line['at']} {words(line)}", style="dim")
        branch.add(text if line["authentic"] else text.append("  NOT WRITTEN BY THIS PLATFORM", "red"))
