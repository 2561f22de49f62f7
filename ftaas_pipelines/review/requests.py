"""Review requests and decisions, kept in the ledger: the local inbox and, later, Label Studio's too.

A request asks one role about one digest under fixed terms. Opening it twice makes one; a newer digest
supersedes what is still open for the same project, role and environment.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from ftaas_pipelines.errors import InputInvalid, Refused
from ftaas_pipelines.governance.gates import ROLE_NAMES, Requirement
from ftaas_pipelines.governance.ledger import Entry, Ledger
from ftaas_pipelines.store import digest_of, short

Decision = Literal["approve", "approve_with_conditions", "changes", "reject"]


@dataclass(frozen=True)
class Review:
    """One request as people see it. `state` is open, decided or superseded."""

    id: str
    project: str
    role: str
    digest: str
    environment: str
    terms: str
    asset: str
    state: str
    since: str
    who: list[str]
    needed: int
    summary: dict[str, Any]
    decisions: list[dict[str, Any]]

    @property
    def title(self) -> str:
        what = f"release for {self.environment}" if self.environment else "dataset splits"
        return f"{ROLE_NAMES[self.role]} sign-off of {self.project} {what} {short(self.digest)}"


def open_requests(
    ledger: Ledger, requirement: Requirement, *, asset: str, summary: dict[str, Any], actor: str
) -> list[Entry]:
    """Open one request for each role that is asked; returns the new ones.

    Args:
        requirement: what the gate will ask for.
        asset: the asset that waits, such as `dataset_sign_off`.
        summary: what the reviewer should see: counts, findings, scores.
    """
    existing = {r.id: r for r in reviews(ledger, project=requirement.project, only_open=False)}
    opened: list[Entry] = []
    for role, needed in requirement.roles.items():
        if needed == 0:
            continue
        identifier = (
            "r" + digest_of({"role": role, "terms": requirement.terms, "p": requirement.project})[:10]
        )
        # One that was superseded while open is asked again: the old content came back.
        if identifier in existing and existing[identifier].state != "superseded":
            continue
        body = {
            "id": identifier,
            "role": role,
            "environment": requirement.environment,
            "asset": asset,
            "gate": requirement.gate,
            "terms": requirement.terms,
            "needed": needed,
            "who": requirement.people[role],
            "excluded": requirement.excluded,
            "summary": summary,
            "link": f"ftaas review show {identifier}",
        }
        opened.append(
            ledger.append(
                "review_requested", requirement.digest, body, project=requirement.project, actor=actor
            )
        )
    return opened


def reviews(
    ledger: Ledger, *, project: str | None = None, role: str | None = None, only_open: bool = True
) -> list[Review]:
    """The requests, oldest first. The newest of a (project, role, environment) supersedes the others."""
    asked = [e for e in ledger.entries("review_requested", project=project) if role in (None, e.body["role"])]
    requests = {e.body["id"]: e for e in asked}  # asked again: the last time counts
    decisions = ledger.entries("decision", project=project)
    newest = {(e.project, e.body["role"], e.body["environment"]): e.body["id"] for e in asked}
    found: list[Review] = []
    for e in requests.values():
        own = [
            {
                "by": d.actor,
                "at": d.at,
                **{k: d.body[k] for k in ("decision", "comment", "conditions", "risk")},
            }
            for d in decisions
            if d.body["review"] == e.body["id"]
        ]
        latest = {d["by"]: d for d in own}
        enough = len(latest) >= e.body["needed"] or any(
            d["decision"] in ("changes", "reject") for d in latest.values()
        )
        superseded = newest[(e.project, e.body["role"], e.body["environment"])] != e.body["id"]
        state = "decided" if enough else "superseded" if superseded else "open"
        if only_open and state != "open":
            continue
        found.append(
            Review(
                e.body["id"],
                e.project,
                e.body["role"],
                e.subject,
                e.body["environment"],
                e.body["terms"],
                e.body["asset"],
                state,
                e.at,
                [p for p in e.body["who"] if p not in e.body["excluded"]],
                e.body["needed"],
                e.body["summary"],
                own,
            )
        )
    return found


def find(ledger: Ledger, identifier: str) -> Review:
    """The request with this id.

    Raises:
        InputInvalid: there is none.
    """
    for review in reviews(ledger, only_open=False):
        if review.id == identifier:
            return review
    raise InputInvalid("there is no such review", "review", identifier, "see `ftaas review list`")


def decide(
    ledger: Ledger,
    identifier: str,
    *,
    decision: str,
    comment: str,
    by: str,
    conditions: str = "",
    risk: str = "",
) -> Entry:
    """Record one person's answer to a request.

    Raises:
        InputInvalid: no such request, an unknown decision, no comment, or conditions missing.
        Refused: the request was superseded, or this person may not sign it.
    """
    review = find(ledger, identifier)
    where = f"review {identifier}"
    if decision not in get_args(Decision):
        raise InputInvalid(
            "is not a decision", "--decision", decision, f"use {', '.join(get_args(Decision))}"
        )
    if not comment.strip():
        raise InputInvalid("a decision needs a comment", "--comment", do="say what was checked, and why")
    if decision == "approve_with_conditions" and not conditions.strip():
        raise InputInvalid("the conditions are missing", "--conditions", do="say which conditions")
    if risk not in ("", "low", "medium", "high"):
        raise InputInvalid("is not a risk level", "--risk", risk, "use low, medium or high")
    if review.state == "superseded":
        raise Refused("a newer digest superseded this review", where, do="see `ftaas review list`")
    if by.lower() not in (p.lower() for p in review.who):
        raise Refused(
            f"this person may not sign as {ROLE_NAMES[review.role]}",
            where,
            by,
            f"have {' or '.join(review.who) or 'someone whom project.yaml names'} decide",
        )
    request = [e for e in ledger.entries("review_requested") if e.body["id"] == identifier][-1]
    body = {
        "review": identifier,
        "role": review.role,
        "environment": review.environment,
        "terms": request.body["terms"],
        "request": request.hash,
        "decision": decision,
        "comment": comment.strip(),
        "conditions": conditions.strip(),
        "risk": risk,
        "saw": digest_of(review.summary),
    }
    return ledger.append("decision", review.digest, body, project=review.project, actor=by)
