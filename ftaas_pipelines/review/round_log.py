"""Rounds on record: kept in the store as people saw them, and what the ledger says has become of each.

round_opened       put before people, in a tool; again when the tool had lost it
round_superseded   newer content is asked about instead
round_closed       its answers count; of a row review, with the artifact of its verdicts
round_reopened     an answer was edited or deleted since; it must be closed again
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.governance.ledger import Entry, Ledger
from ftaas_pipelines.review.acceptance import RefusedAnswer
from ftaas_pipelines.review.kept_rounds import keep
from ftaas_pipelines.review.rounds import Kind, Labelling, Opened, Round, Task
from ftaas_pipelines.store import Artifact, Store

_STATES: dict[str, Literal["open", "superseded", "closed"]] = {
    "round_opened": "open",
    "round_superseded": "superseded",
    "round_closed": "closed",
    "round_reopened": "open",
}


@dataclass(frozen=True)
class RoundState:
    """A round as the ledger knows it.

    Attributes:
        entry: its latest `round_opened`.
        closed: the `round_closed` that holds, when it is closed.
        reopened: the `round_reopened` that nobody has closed since.
    """

    entry: Entry
    state: Literal["open", "superseded", "closed"]
    closed: Entry | None = None
    reopened: Entry | None = None

    @property
    def id(self) -> str:
        return self.entry.body["round"]

    @property
    def kind(self) -> Kind:
        return self.entry.body["kind"]

    @property
    def about(self) -> dict[str, Any]:
        return self.entry.body["about"]

    @property
    def opened(self) -> Opened:
        return Opened(self.id, **self.entry.body["opened"])


def states(ledger: Ledger, project: str | None, kinds: Collection[Kind] | None = None) -> list[RoundState]:
    """The rounds of a project (None: of all), in the order in which they were last opened or closed."""
    found: dict[str, RoundState] = {}
    for entry in ledger.entries(tuple(_STATES), project=project, authentic=True):
        known = found.pop(entry.body["round"], None)
        opened = entry if entry.kind == "round_opened" else known.entry if known else None
        if opened is None:  # says something of a round that was never opened
            continue
        # Brought back into a tool that had lost it, it is still one that was opened again.
        carried = known.reopened if known and entry.kind == "round_opened" else None
        found[entry.body["round"]] = RoundState(
            opened,
            _STATES[entry.kind],
            closed=entry if entry.kind == "round_closed" else None,
            reopened=entry if entry.kind == "round_reopened" else carried,
        )
    return [s for s in found.values() if kinds is None or s.kind in kinds]


# -- kept as they were seen ----------------------------------------------------------------------


def load(store: Store, digest: str) -> tuple[Round, list[Task]]:
    """A kept round and its tasks.

    Raises:
        InputInvalid: the store does not hold it.
        FtaasError: its bytes were changed.
    """
    artifact = store.get(digest)
    intact(artifact)
    content = {k: v for k, v in artifact.content.items() if k not in ("tasks", "tasks_sha256")}
    with artifact.file("tasks.jsonl").open(encoding="utf-8") as lines:
        tasks = [Task(found["key"], found["data"]) for found in map(json.loads, lines)]
    return Round(**content), tasks


def intact(artifact: Artifact) -> None:
    """Raises FtaasError when an artifact is not, byte for byte, what its digest says."""
    if problems := list(artifact.problems()):
        raise FtaasError(problems)


# -- what becomes of them ------------------------------------------------------------------------


@dataclass(frozen=True)
class Desk:
    """Where rounds are kept, asked and recorded, and who acts."""

    ledger: Ledger
    store: Store
    labelling: Labelling
    actor: str

    def has(self, round_: RoundState) -> bool:
        """Whether this tool still has a round."""
        opened = round_.opened
        return opened.server == self.labelling.server and self.labelling.states([opened])[0].exists

    def put_before(self, asked: Round, tasks: Iterable[Task], *, asset: str) -> RoundState:
        """Open a round, once: kept in the store, opened in the tool, recorded. Goes on after a crash.

        A round that is open already stays as it is, unless the tool has it no more, or it is another tool;
        what somebody deleted there is asked again.

        Args:
            asset: the asset that waits for it.

        Raises:
            FtaasError: the tool is out of reach.
        """
        known = {s.id: s for s in states(self.ledger, asked.project)}.get(asked.id)
        artifact = self.store.get(known.entry.body["artifact"]) if known else keep(self.store, asked, tasks)
        kept, kept_tasks = load(self.store, artifact.digest)
        opened = self.labelling.open(kept, kept_tasks)
        if known and known.state == "open" and known.opened == opened:
            return known
        body: dict[str, Any] = {
            "round": kept.id,
            "kind": kept.kind,
            "artifact": artifact.digest,
            "opened": {"server": opened.server, "place": opened.place, "link": opened.link},
            "who": kept.who,
            "per_task": kept.per_task,
            "about": kept.about,
            "form": hashlib.sha256(kept.form.encode()).hexdigest(),
            "asset": asset,
        }
        return RoundState(self.append("round_opened", kept.subject, body, kept.project), "open")

    def supersede(self, rounds: Sequence[RoundState], by: str) -> None:
        """Take rounds back that newer content (asked about in the round `by`) makes pointless."""
        for old in rounds:
            if self.has(old):
                self.labelling.close(old.opened)
            body = {"round": old.id, "by": by}
            self.append("round_superseded", old.entry.subject, body, old.entry.project)

    def note_refused(self, round_: RoundState, refused: Sequence[RefusedAnswer]) -> None:
        """Record answers that do not count, and why; each state of an answer once."""
        if not refused:
            return
        entry = round_.entry
        known = {
            (e.body.get("annotation"), e.body.get("answer"))
            for e in self.ledger.entries("answer_refused", project=entry.project, subject=entry.subject)
            if e.body.get("round") == round_.id
        }
        for one in refused:
            answer = one.answer
            if (answer.annotation, answer.sha256) in known:
                continue
            body = {
                "round": round_.id,
                "annotation": answer.annotation,
                "answer": answer.sha256,
                "by": answer.by,
                "last_by": answer.last_by,
                "reason": one.reason,
            }
            self.append("answer_refused", entry.subject, body, entry.project)

    def append(self, kind: str, subject: str, body: dict[str, Any], project: str) -> Entry:
        return self.ledger.append(kind, subject, body, project=project, actor=self.actor)
