"""How the row review of some rows stands, from the ledger alone: for `status`, gates and forms.

A review is known by its rows (`rows_digest`): the dataset's inputs without verdicts. One that is closed
stands for as long as the terms ask for no more than it was held under.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ftaas_pipelines.data.inputs import DatasetInputs
from ftaas_pipelines.governance.ledger import Entry, Ledger
from ftaas_pipelines.projects.policy import PlatformPolicy
from ftaas_pipelines.projects.project import Batch, Project
from ftaas_pipelines.review import round_log
from ftaas_pipelines.review.round_log import RoundState
from ftaas_pipelines.store import digest_of

ASSET = "row_review_request"


@dataclass(frozen=True)
class Terms:
    """What policy and project ask of a row review.

    Attributes:
        limit: all new rows up to so many, else a sample; 0: no row review is asked for.
        per_task: how many different people look at each row.
        smes: e-mails that may answer.
        rai: e-mails that may decide where no SME is left who has not answered.
    """

    project: str
    limit: int
    per_task: int
    smes: list[str]
    rai: list[str]
    batch: Batch = Batch()

    @classmethod
    def of(cls, policy: PlatformPolicy, project: Project) -> "Terms":
        smes, rai = (sorted(policy.signers(project.people, role)) for role in ("sme", "rai"))
        limit, per_task = policy.row_sample(project), policy.reviewers_per_row(project)
        return cls(project.name, limit, per_task, smes, rai, project.reviews.batch)


@dataclass(frozen=True)
class Progress:
    """How a row review stands.

    Attributes:
        state: not_asked (none is asked for), missing (not opened), deferred (too little is new to ask
            again), open, adjudicating, stuck (nobody may decide), gone (the tool lost it), closed.
        says: that in words, with who is awaited and what to do.
        answered: tasks that enough people have answered, of `tasks`.
        who: e-mails that may still answer.
        counts: refused, skipped and duplicate answers, disagreements.
    """

    state: Literal["not_asked", "missing", "deferred", "open", "adjudicating", "stuck", "gone", "closed"]
    says: str
    round: str = ""
    link: str = ""
    since: str = ""
    tasks: int = 0
    answered: int = 0
    who: list[str] = field(default_factory=list[str])
    counts: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def done(self) -> bool:
        """Whether the dataset's sign-off may be asked for."""
        return self.state in ("not_asked", "deferred", "closed")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def rows_digest(inputs: DatasetInputs) -> str:
    """Identity of the rows that people are asked about: a dataset's inputs without anybody's verdicts."""
    return digest_of(inputs.model_dump(mode="json", exclude={"verdicts"}))


def standing(ledger: Ledger, terms: Terms, rows: str) -> Progress:
    """How the review of these rows stands, from the ledger alone: cheap enough for every status."""
    if terms.limit == 0:
        return Progress("not_asked", "no row review is asked for")
    known = reviews(ledger, terms.project)
    if again := [s for s in known if s.reopened]:  # its verdicts do not hold, and later reviews rest on them
        return as_waiting(again[-1])
    mine = [s for s in known if s.about["rows"] == rows]
    if closed := [s for s in mine if s.closed and _meets(s, terms)]:
        return as_closed(closed[-1])
    if waiting := [s for s in mine if s.state == "open"]:
        return as_waiting(waiting[-1])
    put_off = deferred(ledger, terms.project, rows)
    if put_off and (last := last_closed(ledger, terms)) and put_off.body["last"] == last.id:
        return as_deferred(put_off)
    return Progress("missing", "the rows are not put before the reviewers yet")


def evidence(ledger: Ledger, terms: Terms, rows: str) -> dict[str, Any] | None:
    """What the sign-off forms print of the row review of these rows; None where none was asked for."""
    now_ = standing(ledger, terms, rows)
    if now_.state == "not_asked":
        return None
    mine = [s for s in reviews(ledger, terms.project) if s.about["rows"] == rows and s.closed]
    state = mine[-1] if mine else last_closed(ledger, terms) if now_.state == "deferred" else None
    if state is None or state.closed is None:
        return {"state": now_.says}
    body = state.closed.body
    shown = ("records", "asked", "limit", "seed", "random", "drawn_from", "new", "changed", "gone")
    return {
        "state": now_.says,
        "round": state.id,
        **{name: state.about[name] for name in shown},
        "words": body["counts"],
        "agreement": body["agreement"],
        "bound": body["bound"],
        "bound_says": body["bound_says"],
    }


# -- reviews in the ledger -------------------------------------------------------------------------


def reviews(ledger: Ledger, project: str) -> list[RoundState]:
    """The row reviews of a project, without the rounds that decide between people."""
    return [s for s in round_log.states(ledger, project, ("rows", "preference")) if "of" not in s.about]


def last_closed(ledger: Ledger, terms: Terms) -> RoundState | None:
    closed = [s for s in reviews(ledger, terms.project) if s.closed and _meets(s, terms)]
    return closed[-1] if closed else None


def _meets(state: RoundState, terms: Terms) -> bool:
    """Whether a review was held under terms at least as strict as these."""
    return state.about["limit"] >= terms.limit and state.entry.body["per_task"] >= terms.per_task


def deferred(ledger: Ledger, project: str, rows: str) -> Entry | None:
    found = ledger.entries("round_deferred", project=project, authentic=True)
    return next((e for e in reversed(found) if e.body["rows"] == rows), None)


# -- in words --------------------------------------------------------------------------------------


def as_closed(state: RoundState) -> Progress:
    assert state.closed
    counts = {k: v for k, v in state.closed.body["counts"].items() if v}
    said = ", ".join(f"{n} {word}" for word, n in counts.items())
    says = f"row review {state.id} is closed: {said}"
    asked = state.about["asked"]
    return Progress("closed", says, state.id, state.opened.link, state.closed.at, asked, asked, [], counts)


def as_waiting(
    state: RoundState,
    tasks: int | None = None,
    answered: int = 0,
    done: set[str] | frozenset[str] = frozenset(),
    counts: dict[str, int] | None = None,
) -> Progress:
    """Args: done: who has nothing left to answer."""
    total = state.about["asked"] if tasks is None else tasks
    who = [p for p in state.entry.body["who"] if p not in done]
    said = f"{answered} of {total} rows answered" if tasks is not None else f"{total} rows"
    since = state.reopened.at if state.reopened else state.entry.at
    says = f"row review {state.id}: {said}; waiting for {' or '.join(who)} since {since}"
    if state.reopened:
        why = ", ".join(f"{n} {what}" for what, n in state.reopened.body["why"].items())
        says += f" (opened again: {why})"
    return Progress("open", says, state.id, state.opened.link, since, total, answered, who, counts or {})


def as_deferred(entry: Entry) -> Progress:
    body = entry.body
    n = body["new"] + body["changed"] + body["gone"]
    rows = f"{n} row{'' if n == 1 else 's'} that came, changed or went"
    wait = "wait for the next round" if n != 1 else "waits for the next round"
    says = f"{rows} {wait}; the verdicts of {body['last']} serve" if n else (
        f"no row came, changed or went since {body['last']}: its verdicts serve"
    )  # fmt: skip
    return Progress("deferred", says, body["last"], since=entry.at)
