"""Who must be told that a review waits for them, and when: pure functions over the ledger's entries.

Whoever is asked is told once, and again every so many days while it still waits for them. What was told
stands in the ledger (kind `notified`), so nobody is told twice and an auditor sees who was told when.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from ftaas_pipelines.governance.gates import ROLE_NAMES
from ftaas_pipelines.governance.ledger import Entry, Ledger
from ftaas_pipelines.review import round_log
from ftaas_pipelines.review.local_inbox import SERVER as INBOX
from ftaas_pipelines.review.round_log import RoundState
from ftaas_pipelines.review.rounds import Kind
from ftaas_pipelines.review.sign_offs import requests
from ftaas_pipelines.review.sign_offs.requests import Review
from ftaas_pipelines.store import short

Channel = Literal["mail", "webhook"]
NOTIFIED = "notified"
_ROUNDS: dict[Kind, str] = {
    "rows": "your look at rows",
    "adjudication": "your word on rows that two people judged differently",
    "preference": "your choice between two answers",
}
_ROLES = {"break_glass": "your look back at a break-glass"}


@dataclass(frozen=True)
class Waiting:
    """A review or a round that waits for people.

    Attributes:
        id: of the review or round.
        question: the same as long as the same is asked: what was told is remembered by it.
        subject: digest that it is about.
        what: completes "waits for …".
        about: what it is about, in words.
        who: e-mails that are still asked; those who have answered are not among them.
        link: web address to open; empty where there is none.
        command: what to type instead.
    """

    id: str
    question: str
    project: str
    subject: str
    what: str
    about: str
    since: str
    who: tuple[str, ...]
    link: str = ""
    command: str = ""


@dataclass(frozen=True)
class Notice:
    """One message that is due: for one person by mail, for all of them by webhook.

    Attributes:
        reminder: 0 when it is told for the first time, then 1, 2, …
    """

    waiting: Waiting
    channel: Channel
    who: tuple[str, ...]
    reminder: int

    @property
    def subject(self) -> str:
        again = "still " if self.reminder else ""
        return f"{self.waiting.project} {again}waits for {self.waiting.what}"

    @property
    def text(self) -> str:
        """The mail's body. Names the digest; holds no row and no comment."""
        waiting = self.waiting
        lines = [
            f"{self.subject}.",
            "",
            f"about:  {waiting.about} {short(waiting.subject)}",
            f"since:  {waiting.since}",
            *([f"open:   {waiting.link}"] if waiting.link else []),
            f"or run: {waiting.command}",
            "",
            "Nothing goes on before it is answered." + (f" Reminder {self.reminder}." * bool(self.reminder)),
        ]
        return "\n".join(lines) + "\n"

    @property
    def slack(self) -> dict[str, str]:
        """The webhook's document, as Slack and what speaks like it take it."""
        waiting = self.waiting
        again = f"reminder {self.reminder}: " if self.reminder else ""
        text = (
            f"{again}{waiting.project} waits for {waiting.what} by {' or '.join(self.who)}: "
            f"{waiting.about} {short(waiting.subject)}, since {waiting.since}. "
            f"{waiting.link} `{waiting.command}`"
        )
        return {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}

    @property
    def body(self) -> dict[str, Any]:
        """Body of the ledger entry that remembers it."""
        return {
            "review": self.waiting.id,
            "question": self.waiting.question,
            "channel": self.channel,
            "reminder": self.reminder,
            "who": list(self.who),
        }


@dataclass
class Told:
    """What one person was told of one question by one channel."""

    times: int = 0
    last: str = ""


@dataclass(frozen=True)
class Memory:
    """Who was told what, read off the ledger."""

    told: Mapping[tuple[str, str, str], Told] = field(default_factory=dict[tuple[str, str, str], Told])

    def of(self, question: str, channel: str, person: str) -> Told:
        return self.told.get((question, channel, person.lower()), Told())


def memory(entries: Iterable[Entry]) -> Memory:
    """What the `notified` entries say."""
    told: dict[tuple[str, str, str], Told] = {}
    for entry in entries:
        for person in entry.body["who"]:
            known = told.setdefault((entry.body["question"], entry.body["channel"], person.lower()), Told())
            known.times, known.last = known.times + 1, entry.at
    return Memory(told)


def waiting(
    ledger: Ledger, project: str, answered: Mapping[str, Collection[str]] | None = None
) -> list[Waiting]:
    """What waits for people in a project, oldest first.

    Args:
        answered: round id to the e-mails that have answered all its tasks, where that is known: the
            ledger learns of rows only when the round closes.
    """
    rounds = round_log.states(ledger, project, tuple(_ROUNDS))
    found = [_review(r) for r in requests.reviews(ledger, project=project)]
    found += [_round(r, (answered or {}).get(r.id, ())) for r in rounds if r.state == "open"]
    return sorted((w for w in found if w.who), key=lambda w: (w.since, w.id))


def _review(review: Review) -> Waiting:
    # Asked again, earlier answers no longer count.
    answered = {d["by"].lower() for d in review.decisions if not d["revoked"] and d["at"] >= review.since}
    environment = f" for {review.environment}" if review.environment else ""
    return Waiting(
        id=review.id,
        question=review.request,
        project=review.project,
        subject=review.digest,
        what=_ROLES.get(review.role, f"your {ROLE_NAMES[review.role]} sign-off"),
        about=f"release{environment}" if environment else "dataset splits",
        since=review.since,
        who=tuple(p for p in review.who if p.lower() not in answered),
        link=_web(review.link),
        command=f"ftaas review show {review.id}",
    )


def _round(asked: RoundState, answered: Collection[str]) -> Waiting:
    entry, done = asked.entry, {p.lower() for p in answered}
    return Waiting(
        id=asked.id,
        question=asked.id,
        project=entry.project,
        subject=entry.subject,
        what=_ROUNDS[asked.kind],
        about="dataset version",
        since=(asked.reopened or entry).at,
        who=tuple(p for p in entry.body["who"] if p.lower() not in done),
        link=_web(asked.opened.link),
        command=f"ftaas review rows {asked.id}" if asked.opened.server == INBOX else "ftaas review list",
    )


def _web(link: str) -> str:
    return link if link.startswith(("http://", "https://")) else ""


def due(
    waits: Iterable[Waiting],
    told: Memory,
    channels: Collection[Channel],
    remind_days: float,
    now: datetime,
) -> list[Notice]:
    """The messages to send now.

    Args:
        remind_days: a reminder is due so long after the last message; 0: none is sent.
        now: with its time zone.
    """
    found: list[Notice] = []
    for one in waits:
        if "mail" in channels:
            for person in one.who:
                known = told.of(one.question, "mail", person)
                if _due(known, remind_days, now):
                    found.append(Notice(one, "mail", (person,), known.times))
        if "webhook" in channels:
            by_times: dict[int, list[str]] = {}
            for person in one.who:
                known = told.of(one.question, "webhook", person)
                if _due(known, remind_days, now):
                    by_times.setdefault(known.times, []).append(person)
            found += [Notice(one, "webhook", tuple(who), times) for times, who in sorted(by_times.items())]
    return found


def _due(told: Told, remind_days: float, now: datetime) -> bool:
    if not told.times:
        return True
    # Either way: a clock that once ran ahead must not silence the reminders until it is caught up with.
    passed = abs(now - datetime.fromisoformat(told.last))
    return remind_days > 0 and passed >= timedelta(days=remind_days)
