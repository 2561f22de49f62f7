"""A review round: tasks put before people, and what they answered. The same for every labelling tool.

A round is an artifact of the store (kind `round`): `tasks.jsonl`, `form.xml`, and what it asks. It is
opened in a labelling tool (Label Studio, or the local inbox), which only carries tasks out and answers
back. What counts is decided here and in `acceptance`, never by the tool.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ftaas_pipelines.store import digest_of

Kind = Literal["rows", "adjudication", "preference", "sme", "rai", "approver", "break_glass"]
"""rows: is each fit to train on; adjudication: rows on which two disagreed; preference: which of two answers;
sme, rai: sign-off of splits; approver: of a release for an environment; break_glass: the look back at one."""


@dataclass(frozen=True)
class Task:
    """One question. `key` is a record_id, or the id of the review that is asked.

    `data` is what the form shows: text and lists of text; what is HTML in it is escaped already.
    """

    key: str
    data: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Digest of what the form shows: a tool that shows something else is found out."""
        return digest_of(self.data)


@dataclass(frozen=True)
class Round:
    """What is asked of whom.

    Attributes:
        id: of the content asked about, the people and the terms: the same question has the same id.
        subject: digest of the dataset version, splits or release that it is about.
        title: unique; a labelling tool finds the round again by it.
        form: labelling configuration (Label Studio XML).
        who: e-mails that may answer.
        per_task: how many different people answer each task.
        about: sample size, seed, bound and the like, for the record.
    """

    id: str
    project: str
    kind: Kind
    subject: str
    title: str
    form: str
    instruction: str
    who: list[str]
    per_task: int = 1
    about: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Opened:
    """A round as a labelling tool holds it. `place` is the tool's own id of it; `server` names the tool."""

    round: str
    server: str
    place: str
    link: str


@dataclass(frozen=True)
class Answer:
    """One annotation as the tool has it now.

    Attributes:
        key: of the task, as it was issued.
        data_sha256: digest of what the task shows now.
        annotation: the tool's id of the annotation.
        by: id of the user who is said to have answered (in Label Studio anyone can write this).
        last_by: id of the user who last wrote it (cannot be forged); None when it was imported.
        skipped: the person passed the task by.
        result: field of the form to text (choices as aliases), or to a list of them.
        created_at, updated_at: ISO 8601, UTC, by the tool's clock.
    """

    key: str
    data_sha256: str
    annotation: str
    by: str | None
    last_by: str | None
    skipped: bool
    result: Mapping[str, str | list[str]]
    created_at: str
    updated_at: str

    @property
    def sha256(self) -> str:
        """Digest of what was said, by whom: an answer edited later is found out."""
        return digest_of({"result": dict(self.result), "by": self.by, "last_by": self.last_by})


@dataclass(frozen=True)
class State:
    """What polling may know of a round cheaply. `mark` changes when an answer comes or goes.

    `exists` is False when the tool has it no more.
    """

    exists: bool
    answered: int
    mark: str


class Labelling(Protocol):
    """A labelling tool. Every method raises FtaasError (what, where, do) when the tool is out of reach."""

    @property
    def server(self) -> str:
        """Names the tool and where it runs: stands in the ledger beside each answer."""
        ...

    def open(self, asked: Round, tasks: Iterable[Task]) -> Opened:
        """Put a round before its people. Opening it twice, also after a crash half-way, makes one."""
        ...

    def close(self, opened: Opened) -> None:
        """Mark a round as over, in its title; nothing in it is deleted. Closing it twice is harmless."""
        ...

    def states(self, opened: Sequence[Opened]) -> list[State]:
        """How each stands, in the same order; cheap enough for every tick (50 rounds in 0.3 s)."""
        ...

    def answers(self, opened: Opened) -> list[Answer]:
        """Every annotation of a round, skipped ones too; tasks that are gone simply have none."""
        ...

    def people(self) -> dict[str, str]:
        """User id to e-mail, of those accounts that may sign: service accounts and superusers do not."""
        ...
