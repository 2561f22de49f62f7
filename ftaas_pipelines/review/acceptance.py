"""Which answers of a labelling tool count: pure functions over what the tool shows now.

A tool such as Label Studio has no roles: whoever has an account can write in another's name, change
tasks, and import annotations. So nothing counts because it stands there. An answer counts when a pinned
account wrote it itself, its person was asked, the task still shows what was issued, and it is whole.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.review.rounds import Answer, Kind, Labelling

ProblemsOf = Callable[[Kind, Mapping[str, str | list[str]]], Sequence[str]]
"""What is missing in an answer, or no code of its form; never the text that somebody wrote."""


@dataclass(frozen=True)
class Asked:
    """What was asked, as it was issued.

    Attributes:
        who: e-mails that may answer.
        per_task: how many different people answer each task.
        data: digest of what each task showed, by its key.
    """

    kind: Kind
    who: Sequence[str]
    per_task: int
    data: Mapping[str, str]


@dataclass(frozen=True)
class Accepted:
    """An answer that counts. `person` is the e-mail that the account is pinned to."""

    answer: Answer
    person: str


@dataclass(frozen=True)
class RefusedAnswer:
    """An answer that does not count, and why; the reason names accounts, never what was written."""

    answer: Answer
    reason: str


@dataclass(frozen=True)
class Judged:
    """Every answer of a round, sorted. `skipped` counts tasks that a person passed by."""

    accepted: list[Accepted]
    refused: list[RefusedAnswer]
    skipped: int


def accepted(
    answers: Iterable[Answer], asked: Asked, pins: Mapping[str, str], problems_of: ProblemsOf
) -> Judged:
    """Sort a round's answers. Of one person's answers to a task the latest counts, whatever it says.

    Args:
        pins: account id to e-mail, of the accounts that may sign; see `pinned`.
    """
    refused: list[RefusedAnswer] = []
    latest: dict[tuple[str, str], Answer] = {}
    skipped = 0
    for answer in sorted(answers, key=_when):
        if why := _not_their_own(answer, asked, pins):
            if not answer.skipped:
                refused.append(RefusedAnswer(answer, why))
            continue
        skipped += answer.skipped
        latest[(answer.key, pins[str(answer.by)])] = answer
    found: list[Accepted] = []
    for (_, person), answer in latest.items():
        if answer.skipped:
            continue
        if why := _not_whole(answer, asked, problems_of):
            refused.append(RefusedAnswer(answer, why))
        else:
            found.append(Accepted(answer, person))
    return Judged(found, refused, skipped)


def _when(answer: Answer) -> tuple[str, int, str]:
    # Two of one second: the tool counts its annotations up.
    number = int(answer.annotation) if answer.annotation.isdecimal() else 0
    return answer.updated_at, number, answer.annotation


def _not_their_own(answer: Answer, asked: Asked, pins: Mapping[str, str]) -> str:
    """Why this is not the word of somebody who was asked; empty when it is."""
    if answer.key not in asked.data:
        return "it answers a task that was never issued"
    if answer.last_by is None:
        return "it was imported, not given by a person"
    if answer.by != answer.last_by:
        return f"account {answer.last_by} wrote it in the name of account {answer.by}"
    person = pins.get(answer.last_by)
    if person is None:
        return f"account {answer.last_by} is not pinned to a person who may sign"
    if person.lower() not in (p.lower() for p in asked.who):
        return f"{person} was not asked"
    return ""


def _not_whole(answer: Answer, asked: Asked, problems_of: ProblemsOf) -> str:
    if answer.data_sha256 != asked.data[answer.key]:
        return "the task shows something else than what was issued"
    problems = list(problems_of(asked.kind, answer.result))
    if text(answer, "decision") == "approve_with_conditions" and not text(answer, "conditions"):
        problems.append("approve_with_conditions names no conditions")
    return "; ".join(dict.fromkeys(problems))


def text(answer: Answer, field: str) -> str:
    """What a field of an answer says; several values one a line; empty where it says nothing."""
    value = answer.result.get(field, "")
    return (value if isinstance(value, str) else "\n".join(value)).strip()


def pinned(ledger: Ledger, labelling: Labelling) -> dict[str, str]:
    """Account id to e-mail, where ledger and tool agree.

    The ledger says which account the platform made for whom; the tool, that the account is still there,
    still has that e-mail, and is neither a superuser's nor a service's. An account pinned to two people
    is nobody's.

    Raises:
        FtaasError: the tool is out of reach.
    """
    latest: dict[str, str] = {}
    for entry in ledger.entries("person_pinned", authentic=True):
        if entry.body["server"] == labelling.server:
            latest[entry.subject.lower()] = str(entry.body["user"])
    people_of: dict[str, list[str]] = defaultdict(list)
    for email, user in latest.items():
        people_of[user].append(email)
    now = {user: email.lower() for user, email in labelling.people().items()}
    return {user: people[0] for user, people in people_of.items() if people == [now.get(user)]}
