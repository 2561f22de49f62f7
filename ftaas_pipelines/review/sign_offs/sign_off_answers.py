"""What a round's answers become: decisions of the ledger, refusals with their reason, or withdrawals.

An approval whose answer is gone, was changed by another, or stands beside other data than was issued is
withdrawn. A refusal is not: whoever can write in the tool could else clear it away. An answer that was
withdrawn once never counts again, also when the tool is put back as it was: its author says so anew.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ftaas_pipelines.errors import InputInvalid, Refused
from ftaas_pipelines.governance.gates import APPROVING
from ftaas_pipelines.governance.ledger import Entry
from ftaas_pipelines.governance.requirement import ROLE_NAMES
from ftaas_pipelines.review import acceptance, forms, round_log
from ftaas_pipelines.review.acceptance import Accepted, Asked, Judged, RefusedAnswer
from ftaas_pipelines.review.round_log import Desk, RoundState
from ftaas_pipelines.review.rounds import Answer
from ftaas_pipelines.review.sign_offs import requests

VIA = "label_studio"


@dataclass
class Collected:
    """What a look at the rounds found: new decisions, withdrawn ones, and answers that do not count."""

    decisions: list[Entry] = field(default_factory=list[Entry])
    refused: list[RefusedAnswer] = field(default_factory=list[RefusedAnswer])
    revoked: list[Entry] = field(default_factory=list[Entry])


@dataclass(frozen=True)
class Look:
    """One look at a round: what the tool shows now, held against what the ledger says."""

    desk: Desk
    pins: dict[str, str]
    may_sign: Callable[[str, str], bool]
    policy: str = ""

    def settle(self, round_: RoundState, found: Collected, *, exists: bool, known_only: bool = False) -> None:
        """Take in a round's answers.

        Args:
            exists: the tool still has the round.
            known_only: only hold decisions against their answers; take in no new ones.
        """
        judged = self._judged(round_) if exists else Judged([], [], 0)
        answers = {a.person: a.answer for a in judged.accepted}
        known, spent = self._recorded(round_)
        for decision in known.values():
            answer = answers.get(decision.actor.lower())
            if answer is not None and _evidence(round_, answer) == decision.body["evidence"]:
                continue
            if answer is not None and not known_only:
                why = "answered anew"
            elif decision.body["decision"] in APPROVING:
                why = _why_gone(decision, answer, judged, exists)
            else:
                continue  # a refusal stands until its own author says otherwise
            self._revoke(decision, why, found)
        refused = list(judged.refused)
        recorded = [d.body["evidence"] for d in known.values()]
        for one in judged.accepted if not known_only else []:
            if _evidence(round_, one.answer) in (*recorded, *spent):
                continue
            try:
                found.decisions.append(self._decide(round_, one))
            except (InputInvalid, Refused) as error:  # one answer must not keep the others out
                refused.append(RefusedAnswer(one.answer, error.problems[0].what))
        self.desk.note_refused(round_, refused)
        found.refused += refused

    def _judged(self, round_: RoundState) -> Judged:
        asked, tasks = round_log.load(self.desk.store, round_.entry.body["artifact"])
        issued = Asked(asked.kind, asked.who, asked.per_task, {t.key: t.sha256 for t in tasks})
        answers = self.desk.labelling.answers(round_.opened)
        judged = acceptance.accepted(answers, issued, self.pins, forms.problems_of)
        kept = [a for a in judged.accepted if self.may_sign(round_.kind, a.person)]
        lost = [
            RefusedAnswer(a.answer, f"{a.person} may not sign as {ROLE_NAMES[round_.kind]} any more")
            for a in judged.accepted
            if a not in kept
        ]
        return Judged(kept, [*judged.refused, *lost], judged.skipped)

    def _recorded(self, round_: RoundState) -> tuple[dict[str, Entry], list[dict[str, Any]]]:
        """Each person's decision from this round that holds, and the evidence of those withdrawn."""
        entry = round_.entry
        own = self.desk.ledger.entries(
            ("decision", "decision_revoked"), project=entry.project, subject=entry.subject, authentic=True
        )
        revoked = {e.body["decision"] for e in own if e.kind == "decision_revoked"}
        known: dict[str, Entry] = {}
        spent: list[dict[str, Any]] = []
        for e in own:
            if e.kind != "decision" or e.body.get("evidence", {}).get("round") != round_.id:
                continue
            if e.hash in revoked:
                spent.append(e.body["evidence"])
            else:
                known[e.actor.lower()] = e
        return known, spent

    def _decide(self, round_: RoundState, one: Accepted) -> Entry:
        asked, tasks = round_log.load(self.desk.store, round_.entry.body["artifact"])
        names = ("decision", "comment", "conditions", "risk")
        return requests.decide(
            self.desk.ledger,
            round_.about["review"],
            by=one.person,
            policy=self.policy,
            via=VIA,
            saw=requests.digest_of_shown(asked.form, tasks[0].data),
            evidence=_evidence(round_, one.answer),
            **{name: acceptance.text(one.answer, name) for name in names},
        )

    def _revoke(self, decision: Entry, why: str, found: Collected) -> None:
        body = {k: decision.body[k] for k in ("role", "environment", "terms", "review")}
        body |= {"decision": decision.hash, "by": decision.actor, "why": why}
        found.revoked.append(self.desk.append("decision_revoked", decision.subject, body, decision.project))


def _evidence(round_: RoundState, answer: Answer) -> dict[str, Any]:
    return {
        "server": round_.opened.server,
        "place": round_.opened.place,
        "round": round_.id,
        "annotation": answer.annotation,
        "user": answer.last_by,
        "data_sha256": answer.data_sha256,
        "answer_sha256": answer.sha256,
        "updated_at": answer.updated_at,
    }


def _why_gone(decision: Entry, answer: Answer | None, judged: Judged, exists: bool) -> str:
    if not exists:
        return "its round is gone from the labelling tool"
    if answer is not None:
        return "its answer was changed since"
    own = decision.body["evidence"]["annotation"]
    reasons = [r.reason for r in judged.refused if r.answer.annotation == own]
    return reasons[0] if reasons else "its answer is gone from the labelling tool"
