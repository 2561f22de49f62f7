"""Rows on which two people differ are put before somebody who answered neither.

Other SMEs are asked first, Responsible-AI reviewers where none is left. They see what was said, without
names. What they say is the verdict; the agreement of a review is measured before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ftaas_pipelines.review import forms, round_log
from ftaas_pipelines.review.round_log import Desk, RoundState
from ftaas_pipelines.review.rounds import Kind, Round, Task
from ftaas_pipelines.review.rows.row_answers import gather
from ftaas_pipelines.review.rows.row_standing import ASSET, Terms
from ftaas_pipelines.review.rows.verdicts import Said
from ftaas_pipelines.store import digest_of

INSTRUCTION = "Reviewers differ on these rows. You see what they said, without their names: decide."


@dataclass(frozen=True)
class Step:
    """How far the disputed rows are decided.

    Attributes:
        decided: what was said by those who may decide, by key.
        round: the round in which it was asked; None while nobody can be asked.
        says: what is awaited, or why nobody can be asked.
    """

    state: Literal["adjudicating", "stuck"]
    says: str
    decided: dict[str, list[Said]] = field(default_factory=dict[str, list[Said]])
    round: RoundState | None = None
    who: list[str] = field(default_factory=list[str])

    @property
    def link(self) -> str:
        return self.round.opened.link if self.round else ""

    @property
    def since(self) -> str:
        return self.round.entry.at if self.round else ""


def step(
    desk: Desk,
    terms: Terms,
    review: Round,
    tasks: Sequence[Task],
    votes: Mapping[str, Sequence[Said]],
    disputed: Sequence[str],
) -> Step:
    """Ask about the disputed rows, once, and read what was decided."""
    free = {key: _free(terms, {s.person for s in votes[key]}) for key in disputed}
    if stuck := [key for key, people in free.items() if not people]:
        does = "name another SME or Responsible-AI reviewer in project.yaml"
        return Step("stuck", f"reviewers differ on {len(stuck)} rows and nobody is left to decide: {does}")
    asked, questions = _round(review, tasks, votes, disputed, sorted({p for f in free.values() for p in f}))
    known = {s.id: s for s in round_log.states(desk.ledger, review.project)}
    older = [s for s in known.values() if s.about.get("of") == review.id and s.id != asked.id]
    desk.supersede([s for s in older if s.state == "open"], asked.id)
    state = known.get(asked.id)
    if state is None or state.state == "superseded" or not desk.has(state):
        state = desk.put_before(asked, questions, asset=ASSET)
    kept, kept_tasks = round_log.load(desk.store, state.entry.body["artifact"])
    found = gather(desk, state, kept, kept_tasks).votes
    decided = {key: [s for s in says if s.person in free[key]] for key, says in found.items()}
    left = [key for key in disputed if len({s.verdict for s in decided[key]}) != 1]
    if left and state.state == "closed":  # somebody took back what closed it
        state = desk.put_before(asked, questions, asset=ASSET)
    return Step("adjudicating", _says(asked, decided, left, state), decided, state, kept.who)


def _free(terms: Terms, answered: set[str]) -> list[str]:
    smes = [p for p in terms.smes if p.lower() not in answered]
    return smes or [p for p in terms.rai if p.lower() not in answered]


def _round(
    review: Round,
    tasks: Sequence[Task],
    votes: Mapping[str, Sequence[Said]],
    disputed: Sequence[str],
    who: list[str],
) -> tuple[Round, list[Task]]:
    differ = sorted([key, s.person, s.answer.sha256] for key in disputed for s in votes[key])
    identifier = "j" + digest_of([review.id, who, differ])[:10]
    kind: Kind = "preference" if review.kind == "preference" else "adjudication"
    wanted = set(disputed)
    asked = Round(
        id=identifier,
        project=review.project,
        kind=kind,
        subject=review.subject,
        title=f"{review.project[:12]} disputed {review.subject[:6]} {identifier}",
        form=forms.form(kind),
        instruction=INSTRUCTION,
        who=who,
        about={"of": review.id, "seed": review.about["seed"], "asked": len(wanted)},
    )
    questions = [
        Task(t.key, {**t.data, "said_html": forms.said_html(s.answer.result for s in votes[t.key])})
        for t in tasks
        if t.key in wanted
    ]
    return asked, questions


def _says(asked: Round, decided: Mapping[str, Sequence[Said]], left: Sequence[str], state: RoundState) -> str:
    if not left:
        return f"all {len(decided)} disputed rows are decided"
    torn = sum(len({s.verdict for s in decided[key]}) > 1 for key in left)
    says = f"reviewers differ on {len(decided)} rows; round {asked.id} has {len(left)} left to decide"
    if torn:
        says += f", on {torn} of which those who decide differ too: one of them must change their answer"
    return f"{says}; waiting for {' or '.join(asked.who)} since {state.entry.at}"
