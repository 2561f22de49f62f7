"""The local inbox: rounds for people without Label Studio. A `Labelling` over the ledger and the store.

What is asked is the round that the store keeps; an answer is a ledger entry `answer` that names an artifact
with what was said (row texts never stand in the ledger). An answer is never changed: the same person's next
one takes its place. A person's account is their e-mail, pinned when they are first asked.

Whether this machine's user may answer as somebody is asked before (`identity.may_answer_as`).
"""

import json
from collections.abc import Iterable, Sequence

from ftaas_pipelines.errors import InputInvalid, Refused
from ftaas_pipelines.governance.ledger import Entry, Ledger
from ftaas_pipelines.review import forms, round_log
from ftaas_pipelines.review.round_log import RoundState
from ftaas_pipelines.review.rounds import Answer, Opened, Round, State, Task
from ftaas_pipelines.store import Store, digest_of

SERVER = "local inbox"


class LocalInbox:
    """The inbox of one project.

    Args:
        actor: who acts for the platform: stands in the entries that pin people.
    """

    def __init__(self, ledger: Ledger, store: Store, project: str, actor: str):
        self._ledger, self._store, self._project, self._actor = ledger, store, project, actor

    # -- what every labelling tool can -----------------------------------------------------------

    @property
    def server(self) -> str:
        return SERVER

    def open(self, asked: Round, tasks: Iterable[Task]) -> Opened:
        """Nothing to carry out: the round lies in the store. Its people are pinned."""
        pinned = self.people()
        for email in asked.who:
            if email not in pinned:
                body = {"server": SERVER, "user": email}
                self._ledger.append("person_pinned", email, body, project="", actor=self._actor)
        return Opened(asked.id, SERVER, asked.id, f"ftaas review rows {asked.id}")

    def close(self, opened: Opened) -> None:
        """The ledger says that it is over; nothing else does."""

    def states(self, opened: Sequence[Opened]) -> list[State]:
        given = self._ledger.entries(("answer", "answer_withdrawn"), project=self._project, authentic=True)
        found: list[State] = []
        for one in opened:
            mine = [e for e in given if e.body["round"] == one.round]
            keys = {e.subject for e in mine if e.kind == "answer" and not e.body["skipped"]}
            found.append(State(True, len(keys), f"{len(mine)}:{mine[-1].seq if mine else 0}"))
        return found

    def answers(self, opened: Opened) -> list[Answer]:
        given = self._ledger.entries(("answer", "answer_withdrawn"), project=self._project, authentic=True)
        mine = [e for e in given if e.body["round"] == opened.round]
        withdrawn = {e.body["annotation"] for e in mine if e.kind == "answer_withdrawn"}
        return [self._answer(e) for e in mine if e.kind == "answer" and str(e.seq) not in withdrawn]

    def people(self) -> dict[str, str]:
        pins = self._ledger.entries("person_pinned", authentic=True)
        return {e.body["user"]: e.subject for e in pins if e.body["server"] == SERVER}

    # -- what people do --------------------------------------------------------------------------

    def tasks(self, round_id: str) -> tuple[Round, list[Task]]:
        """What a round asks.

        Raises:
            InputInvalid: there is no such round here.
        """
        return round_log.load(self._store, self._round(round_id).entry.body["artifact"])

    def answer(self, round_id: str, key: str, result: forms.Result, *, by: str, skip: bool = False) -> Entry:
        """Record one person's answer to one task; a later one of theirs takes its place.

        Args:
            key: of the task; a unique beginning will do.
            skip: pass the task by.

        Raises:
            InputInvalid: no such round or task, or the answer is not complete; says all that is missing.
            Refused: the round was superseded, or this person was not asked.
        """
        state, where = self._round(round_id), f"round {round_id}"
        if state.state == "superseded":
            raise Refused("newer content is asked about instead", where, do="see `ftaas review list`")
        if by.lower() not in (p.lower() for p in state.entry.body["who"]):
            raise Refused(
                "this person was not asked", where, by, f"have {' or '.join(state.entry.body['who'])}"
            )
        asked, tasks = round_log.load(self._store, state.entry.body["artifact"])
        task = _one(tasks, key, where)
        problems = [] if skip else forms.problems_of(asked.kind, result, task.data)
        if problems:
            raise InputInvalid("the answer is not complete", where, "; ".join(problems), "give all of it")
        said = {name: forms.list_of(result, name) for name in sorted(result)}
        made_from = digest_of({"answer": said, "round": round_id, "key": task.key, "by": by.lower()})
        with self._store.create("answer", made_from) as draft:
            (draft.path / "answer.json").write_text(json.dumps(said, ensure_ascii=False), "utf-8")
            draft.content = {"round": round_id, "key": task.key}
        body = {"round": round_id, "said": draft.made.digest, "data_sha256": task.sha256, "skipped": skip}
        return self._ledger.append("answer", task.key, body, project=self._project, actor=by.lower())

    def withdraw(self, round_id: str, key: str, *, by: str) -> list[Entry]:
        """Take back a person's answers to a task; of a closed review, it has to be closed again.

        Raises:
            InputInvalid: there is no such round.
        """
        opened = self._round(round_id).opened
        mine = [a for a in self.answers(opened) if a.by == by.lower() and a.key.startswith(key)]
        return [
            self._ledger.append(
                "answer_withdrawn",
                a.key,
                {"round": round_id, "annotation": a.annotation},
                project=self._project,
                actor=by.lower(),
            )
            for a in mine
        ]

    def _round(self, round_id: str) -> RoundState:
        for state in round_log.states(self._ledger, self._project):
            if state.id == round_id and state.opened.server == SERVER:
                return state
        raise InputInvalid("there is no such round", SERVER, round_id, "see `ftaas review list`")

    def _answer(self, entry: Entry) -> Answer:
        artifact = self._store.get(entry.body["said"])
        round_log.intact(artifact)
        return Answer(
            key=entry.subject,
            data_sha256=entry.body["data_sha256"],
            annotation=str(entry.seq),
            by=entry.actor,
            last_by=entry.actor,
            skipped=entry.body["skipped"],
            result=json.loads(artifact.file("answer.json").read_text("utf-8")),
            created_at=entry.at,
            updated_at=entry.at,
        )


def _one(tasks: Sequence[Task], key: str, where: str) -> Task:
    found = [t for t in tasks if t.key == key] or [t for t in tasks if key and t.key.startswith(key)]
    if len(found) != 1:
        raise InputInvalid("names no one task", where, key, "give more of the record's id")
    return found[0]
