"""The answers of a row review or of its adjudication that count, as verdicts would have them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ftaas_pipelines.review import acceptance, forms
from ftaas_pipelines.review.acceptance import Asked, RefusedAnswer
from ftaas_pipelines.review.round_log import Desk, RoundState
from ftaas_pipelines.review.rounds import Round, Task
from ftaas_pipelines.review.rows import verdicts
from ftaas_pipelines.review.rows.verdicts import Said


@dataclass
class Gathered:
    """The answers of a round that count, by task key; and how many do not, and why."""

    votes: dict[str, list[Said]]
    counts: dict[str, int]

    def all(self) -> list[Said]:
        return [said for one in self.votes.values() for said in one]


def gather(desk: Desk, state: RoundState, asked: Round, tasks: Sequence[Task]) -> Gathered:
    """Read a round's answers and keep those that count; the others go into the ledger with the reason."""
    given = desk.labelling.answers(state.opened)
    known = {task.key: task for task in tasks}
    terms = Asked(asked.kind, asked.who, asked.per_task, {t.key: t.sha256 for t in tasks})
    pins = acceptance.pinned(desk.ledger, desk.labelling)
    judged = acceptance.accepted(given, terms, pins, forms.problems_of)
    votes: dict[str, list[Said]] = {key: [] for key in known}
    refused = list(judged.refused)
    for one in judged.accepted:
        task = known[one.answer.key]
        if problems := forms.problems_of(asked.kind, one.answer.result, task.data):
            refused.append(RefusedAnswer(one.answer, "; ".join(problems)))
        else:
            votes[task.key].append(verdicts.read(asked.id, asked.kind, task, one, asked.about["seed"]))
    desk.note_refused(state, refused)
    twice = Counter((a.key, a.last_by) for a in given if not a.skipped and a.by == a.last_by)
    counts = {"refused": len(refused), "skipped": judged.skipped, "duplicates": twice.total() - len(twice)}
    return Gathered(votes, counts)


def people_done(tasks: Sequence[Task], votes: Mapping[str, Sequence[Said]], per_task: int) -> set[str]:
    """Those who have answered every task that still wants an answer: nobody waits for them."""
    open_ = [votes[t.key] for t in tasks if len(votes[t.key]) < per_task]
    return set.intersection(*({s.person for s in says} for says in open_))
