"""Row review: people look at the rows of a dataset version before anybody signs it.

    open               asks about what is new in dataset version A             round_opened
    close_if_complete  every row answered, and settled where two differ        round_closed
    (the dataset is made again with the verdicts: version B, of the same rows, which needs none of its own)
    reopened           an answer was edited or deleted since                   round_reopened

Each step may be killed anywhere and called again; one acts at a time for a project. What a tool shows is
never trusted: `acceptance` says which answers count, and what counts stands in the ledger.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.data.inputs import DatasetInputs
from ftaas_pipelines.errors import InputInvalid, Refused
from ftaas_pipelines.governance.ledger import Entry
from ftaas_pipelines.projects.project import Batch
from ftaas_pipelines.review import forms, round_log
from ftaas_pipelines.review.round_log import Desk, RoundState
from ftaas_pipelines.review.rounds import Answer, Round, Task
from ftaas_pipelines.review.rows import adjudication, row_standing, verdicts
from ftaas_pipelines.review.rows.row_answers import Gathered, gather, people_done
from ftaas_pipelines.review.rows.row_standing import ASSET, Progress, Terms, rows_digest
from ftaas_pipelines.review.rows.verdicts import Judgement, Said
from ftaas_pipelines.store import Artifact, digest_of, now

if TYPE_CHECKING:
    from ftaas_pipelines.review.rows.new_rows import NewRows

LEASE_S = 600
INSTRUCTION = (
    "Is each row fit to train on? Approve it as it is, correct it, or reject it, and say why. "
    "Skip a row to leave it to somebody else: a skipped row is not answered."
)


@dataclass(frozen=True)
class RowReview:
    """The row reviews of one project, as policy and project ask for them."""

    desk: Desk
    terms: Terms

    def progress(self, inputs: DatasetInputs) -> Progress:
        """How the review of these rows stands, from the ledger alone."""
        return row_standing.standing(self.desk.ledger, self.terms, rows_digest(inputs))

    # -- opening ---------------------------------------------------------------------------------

    def open(
        self,
        dataset: Artifact,
        inputs: DatasetInputs,
        *,
        splits: Artifact | None = None,
        at: str | None = None,
    ) -> Progress:
        """Ask about what is new in a dataset version; open reviews of other rows are superseded.

        Nothing is asked where these rows were reviewed, or too little is new (`reviews.batch`).

        Args:
            inputs: what the dataset is made from.
            splits: the latest known: tells near-duplicates of their test split.
            at: now, ISO 8601, UTC.

        Raises:
            Refused: fewer people may answer than are asked for each row.
            FtaasError: the labelling tool is out of reach.
        """
        with self._alone():
            self._bring_back()
            stands = self.progress(inputs)
            if stands.state in ("not_asked", "closed"):
                self._supersede_all_but("")
                return stands
            question = self._question(dataset, inputs, splits, at or now())
            if isinstance(question, Entry):
                self._supersede_all_but("")
                return row_standing.as_deferred(question)
            state = self.desk.put_before(*question, asset=ASSET)
            self._supersede_all_but(state.id)
            return row_standing.as_waiting(state)

    def _question(
        self, dataset: Artifact, inputs: DatasetInputs, splits: Artifact | None, at: str
    ) -> tuple[Round, list[Task]] | Entry:
        """The round to open and its tasks; or the entry that says why none is opened."""
        from ftaas_pipelines.review.rows import new_rows, sampling

        terms, rows = self.terms, rows_digest(inputs)
        if len(terms.smes) < terms.per_task:
            raise Refused(
                f"{terms.per_task} people are asked to look at each row, and {len(terms.smes)} may",
                f"{terms.project}/{ASSET}",
                do="name more SMEs under people.smes, or lower reviews.reviewers_per_row",
            )
        identifier = "w" + digest_of([terms.project, rows, terms.limit, terms.per_task, terms.smes])[:10]
        known = {s.id: s for s in row_standing.reviews(self.desk.ledger, terms.project)}.get(identifier)
        if known:  # asked before; the tool may have lost it, or newer rows came and went
            return round_log.load(self.desk.store, known.entry.body["artifact"])
        last = row_standing.last_closed(self.desk.ledger, terms)
        given = verdicts.verdicts_of(self.desk.ledger, self.desk.store, terms.project)
        new = new_rows.compare(dataset, self._rows_of(last), given)
        if last and not _is_due(new.total, terms.batch, last.entry.at, at):
            return self._defer(dataset, rows, last, new)
        plan = sampling.plan(dataset, inputs, new, terms.limit, splits)
        asked = Round(
            id=identifier,
            project=terms.project,
            kind=plan.kind,
            subject=dataset.digest,
            title=f"{terms.project[:14]} rows {dataset.digest[:6]} {identifier}",
            form=forms.form(plan.kind),
            instruction=INSTRUCTION,
            who=terms.smes,
            per_task=terms.per_task,
            about={**plan.about, "says": sampling.in_words(plan.about)},
        )
        return asked, plan.tasks

    def _rows_of(self, last: RoundState | None) -> Artifact | None:
        """The dataset version of a review; without it, every row without a verdict is asked about again."""
        try:
            return self.desk.store.get(last.entry.subject) if last else None
        except InputInvalid:
            return None

    def _defer(self, dataset: Artifact, rows: str, last: RoundState, new: "NewRows") -> Entry:
        """Record, once, that what is new waits for the next review."""
        known = row_standing.deferred(self.desk.ledger, self.terms.project, rows)
        body = {"rows": rows, "new": new.came, "changed": new.changed, "gone": new.gone, "last": last.id}
        if known and known.body == body:
            return known
        return self.desk.append("round_deferred", dataset.digest, body, self.terms.project)

    def open_anew(self) -> None:
        """Put open rounds that the tool has lost before their people again; their answers went with them.

        Raises:
            FtaasError: the tool is out of reach.
        """
        with self._alone():
            for state in round_log.states(self.desk.ledger, self.terms.project, verdicts.ROW_KINDS):
                here = state.opened.server == self.desk.labelling.server
                if state.state == "open" and here and not self.desk.has(state):
                    kept = round_log.load(self.desk.store, state.entry.body["artifact"])
                    self.desk.put_before(*kept, asset=ASSET)

    def _bring_back(self) -> None:
        """Put reviews that were opened again before people again, also where the tool has lost them."""
        for state in row_standing.reviews(self.desk.ledger, self.terms.project):
            if state.reopened:
                kept = round_log.load(self.desk.store, state.entry.body["artifact"])
                self.desk.put_before(*kept, asset=ASSET)

    def _supersede_all_but(self, kept: str) -> None:
        """Take back open rounds but one, and but those opened again: later reviews rest on their verdicts."""
        rounds = round_log.states(self.desk.ledger, self.terms.project, verdicts.ROW_KINDS)
        stay = {kept, *(s.id for s in rounds if s.reopened)}
        others = [s for s in rounds if s.state == "open" and not stay & {s.id, s.about.get("of")}]
        self.desk.supersede(others, kept)

    # -- closing ---------------------------------------------------------------------------------

    def close_if_complete(self) -> Progress | None:
        """Read the answers of what is open; close it when every row is answered and settled.

        Rows on which people differ are put before somebody who answered neither, in a round of their own.

        Returns:
            How the review stands that is still awaited, else the one closed last; None: none was open.

        Raises:
            FtaasError: the tool is out of reach, or what was asked is not in the store as it was.
        """
        with self._alone():
            rounds = row_standing.reviews(self.desk.ledger, self.terms.project)
            found = [self._settle(s) for s in rounds if s.state == "open"]
            return min(found, key=lambda p: p.state == "closed") if found else None

    def _settle(self, state: RoundState) -> Progress:
        if not self.desk.has(state):
            says = f"{self.desk.labelling.server} does not have row review {state.id}"
            return Progress("gone", f"{says}: materialise {ASSET} to open it again", state.id)
        asked, tasks = round_log.load(self.desk.store, state.entry.body["artifact"])
        gathered = gather(self.desk, state, asked, tasks)
        answered = [t for t in tasks if len(gathered.votes[t.key]) >= asked.per_task]
        if len(answered) < len(tasks):
            done = people_done(tasks, gathered.votes, asked.per_task)
            return row_standing.as_waiting(state, len(tasks), len(answered), done, gathered.counts)
        found, disputed = verdicts.settle(tasks, gathered.votes, {})
        if not disputed:
            return self._close(state, asked, found, gathered, None)
        step = adjudication.step(self.desk, self.terms, asked, tasks, gathered.votes, disputed)
        gathered.counts["disagreements"] = len(disputed)
        found, left = verdicts.settle(tasks, gathered.votes, step.decided)
        if not left:
            return self._close(state, asked, found, gathered, step)
        return Progress(
            step.state,
            f"row review {state.id}: {step.says}",
            state.id,
            step.link,
            step.since,
            len(disputed),
            len(disputed) - len(left),
            step.who,
            gathered.counts,
        )

    def _close(
        self,
        state: RoundState,
        asked: Round,
        found: Sequence[Judgement],
        gathered: Gathered,
        step: adjudication.Step | None,
    ) -> Progress:
        """Verdicts to the store, the tool's rounds closed, and last the entry that makes it all count."""
        from ftaas_pipelines.review.rows import agreement, sampling

        decided = [said for one in step.decided.values() for said in one] if step else list[Said]()
        artifact = verdicts.write(self.desk.store, state.id, found, [*gathered.all(), *decided])
        bad = sum(j.word != "approve" for j in found if j.task.data["drawn"] in ("all", "random"))
        agreed = agreement.measure({key: {s.person: s.word for s in v} for key, v in gathered.votes.items()})
        body: dict[str, Any] = {
            "round": state.id,
            "verdicts": artifact.digest,
            "answers_sha256": artifact.content["answers_sha256"],
            "counts": {
                **{word: sum(j.word == word for j in found) for word in ("approve", "fix", "reject")},
                "adjudicated": sum(j.adjudicated for j in found),
                **gathered.counts,
            },
            "agreement": agreed.as_dict(),
            "bound": sampling.bound(asked.about["drawn_from"], asked.about["random"], bad),
            "bound_says": sampling.bound_in_words(asked.about, bad),
        }
        subject, project = state.entry.subject, self.terms.project
        if step and step.round:
            self.desk.labelling.close(step.round.opened)
            if step.round.state != "closed":
                self.desk.append("round_closed", subject, {"round": step.round.id, "of": state.id}, project)
        self.desk.labelling.close(state.opened)
        entry = self.desk.append("round_closed", subject, body, project)
        return row_standing.as_closed(RoundState(state.entry, "closed", closed=entry))

    # -- opening again ---------------------------------------------------------------------------

    def reopened(self) -> list[Entry]:
        """Open closed reviews again whose answers are not, in the tool, those that counted.

        A review that was held in another tool than this is left as it is.

        Returns:
            The new `round_reopened` entries: which records, and why.

        Raises:
            FtaasError: the tool is out of reach; nothing was changed.
        """
        with self._alone():
            rounds = round_log.states(self.desk.ledger, self.terms.project, verdicts.ROW_KINDS)
            known = {s.id: s for s in rounds}
            return [
                e for s in rounds if s.closed and "verdicts" in s.closed.body for e in self._hold(s, known)
            ]

    def _hold(self, state: RoundState, known: Mapping[str, RoundState]) -> list[Entry]:
        """Hold a closed review against what the tool says now."""
        assert state.closed
        then = verdicts.answers_of(self.desk.store.get(state.closed.body["verdicts"]))
        why: dict[str, str] = {}
        for identifier in sorted({row["round"] for row in then}):
            round_ = known[identifier]
            if round_.opened.server != self.desk.labelling.server:
                continue
            answers = self.desk.labelling.answers(round_.opened) if self.desk.has(round_) else None
            why |= _differences([row for row in then if row["round"] == identifier], answers)
        if not why:
            return []
        body = {
            "round": state.id,
            "why": dict(Counter(why.values())),
            "records": dict(sorted(why.items())[:100]),
        }
        entry = self.desk.append("round_reopened", state.entry.subject, body, self.terms.project)
        if self.desk.has(state):  # what the tool has lost is opened when the asset is made again
            self.desk.labelling.open(*round_log.load(self.desk.store, state.entry.body["artifact"]))
        return [entry]

    def _alone(self) -> Any:
        return self.desk.store.lease(f"rows-{self.terms.project}", LEASE_S)


def _is_due(new: int, batch: Batch, last: str, at: str) -> bool:
    """Whether people are asked again: so many rows are new, or any is and so many days have passed."""
    passed = datetime.fromisoformat(at) - datetime.fromisoformat(last)
    return new >= batch.rows or (0 < batch.days and new > 0 and passed >= timedelta(days=batch.days))


def _differences(then: Sequence[Mapping[str, str]], answers: Sequence[Answer] | None) -> dict[str, str]:
    """The records whose answers are not those that counted, and what became of them."""
    if answers is None:
        return {row["record_id"]: "the round is gone" for row in then}
    there = {a.annotation: a for a in answers}
    found: dict[str, str] = {}
    counted: dict[tuple[str, str | None], Answer] = {}
    for row in then:
        answer = there.get(row["annotation"])
        if answer is None or answer.skipped:
            found[row["record_id"]] = "deleted"
            continue
        counted[answer.key, answer.last_by] = answer
        if answer.sha256 != row["answer"]:
            found[row["record_id"]] = "edited"
        elif answer.data_sha256 != row["data_sha256"]:
            found[row["record_id"]] = "its task was changed"
    for a in answers:
        mine = counted.get((a.key, a.last_by))
        if mine and a.by == a.last_by and _when(a) > _when(mine) and a.sha256 != mine.sha256:
            found.setdefault(a.key, "answered again")
    return found


def _when(answer: Answer) -> tuple[str, int]:
    # Two of one second: tools count their annotations up.
    return answer.updated_at, int(answer.annotation) if answer.annotation.isdecimal() else 0
