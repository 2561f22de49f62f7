"""One question, asked before anything crosses: does the ledger hold what the policy asks for?

`require()` is called by the asset behind a gate, in its own body, just before it launches anything.
It records a grant and returns it; the stage that does the work calls `check()` and refuses a grant
that the ledger does not know, that names another digest, or whose sign-offs no longer hold.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ftaas_pipelines.errors import Problem, Refused
from ftaas_pipelines.governance.ledger import Entry, Ledger
from ftaas_pipelines.governance.requirement import (
    ROLE_NAMES,
    Gate,
    Requirement,
    deployment_requirement,
    policy_version,
    training_requirement,
)
from ftaas_pipelines.governance.standing import APPROVING, Standing, standing, without
from ftaas_pipelines.store import short

__all__ = [
    "APPROVING",
    "ROLE_NAMES",
    "Gate",
    "Grant",
    "Requirement",
    "Standing",
    "awaited",
    "check",
    "deployment_requirement",
    "policy_version",
    "refusal",
    "require",
    "standing",
    "submitted_by",
    "training_requirement",
]

SUBMITTED = "data_submitted"
"""Ledger entry of a person who had a dataset version made from its sources; subject: the version."""


@dataclass(frozen=True)
class Grant:
    """Leave to go on, bound to a digest and to a ledger entry."""

    gate: str
    project: str
    digest: str
    environment: str
    entry: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def submitted_by(ledger: Ledger, project: str, dataset: str) -> list[str]:
    """Who made a dataset version from its sources: separation of duties keeps them from signing it."""
    made = ledger.entries(SUBMITTED, project=project, subject=dataset, authentic=True)
    return sorted({e.actor for e in made})


def awaited(ledger: Ledger, requirement: Requirement, asset: str) -> list[dict[str, Any]]:
    """Who is being waited for, since when, and where to answer: the `waiting` of interface.md."""
    found = standing(ledger, requirement)
    signed = {e.actor.lower() for e in found.decisions}
    rounds = ledger.entries("round_opened", project=requirement.project, subject=requirement.digest)
    links = {e.body["about"].get("request"): e.body["opened"]["link"] for e in rounds}
    rows: list[dict[str, Any]] = []
    for role in found.missing:
        request = found.requests.get(role)
        rows.append(
            {
                "asset": asset,
                "role": role,
                "who": [p for p in requirement.able(role) if p.lower() not in signed],
                "since": request.at if request else None,
                "link": links.get(request.hash) or request.body.get("link") if request else None,
                "review": request.body["id"] if request else None,
            }
        )
    return rows


def refusal(
    requirement: Requirement, found: Standing, waiting: Sequence[dict[str, Any]], asset: str
) -> Refused:
    """The error that says why not: the digest, the missing roles, what no longer counts, what to do."""
    target = f" for {requirement.environment}" if requirement.environment else ""
    noun = requirement.noun
    where = f"{requirement.project}/{asset}"
    problems: list[Problem] = []
    for entry in found.refusals:
        problems.append(
            Problem(
                f"{noun} {short(requirement.digest)}{target}: {ROLE_NAMES[entry.body['role']]} {entry.actor} "
                f"said '{entry.body['decision']}': {entry.body.get('comment', '')}",
                where,
                do="change what was asked for; a new digest gets a new review",
            )
        )
    for row in waiting:
        again = f"`ftaas run {requirement.project}` puts it before them"
        void = [f"the one by {e.actor} {why}" for e, why in found.void if e.body["role"] == row["role"]]
        problems.append(
            Problem(
                f"{noun} {short(requirement.digest)}{target} is not signed: waiting for "
                f"{ROLE_NAMES[row['role']]} sign-off by {' or '.join(row['who']) or 'nobody named'}"
                + (f" since {row['since']}" if row["since"] else "")
                + (f" ({'; '.join(void)})" if void else ""),
                where,
                do=_how(row["link"]) if row["link"] else again if row["who"] else _name_others(row["role"]),
            )
        )
    return Refused(problems, waiting=waiting)


def _name_others(role: str) -> str:
    return (
        f"name another {ROLE_NAMES[role]} in project.yaml: owners, and who submitted or trained, never sign"
    )


def _how(link: str) -> str:
    return f"open {link}" if "://" in link else f"`{link}`"


def require(ledger: Ledger, requirement: Requirement, *, asset: str, actor: str) -> Grant:
    """Leave to cross the gate, recorded in the ledger.

    Where duties are separate, who starts a training does not count as one of its signers.

    Raises:
        Refused: a sign-off is missing or someone refused; names digest, role and what to do.
    """
    if requirement.separate and asset.startswith("adapter_"):
        requirement = without(requirement, actor)
    found = standing(ledger, requirement)
    if not found.satisfied:
        raise refusal(requirement, found, awaited(ledger, requirement, asset), asset)
    body: dict[str, Any] = {
        "gate": requirement.gate,
        "environment": requirement.environment,
        "asset": asset,
        "requirement": asdict(requirement),
        "evidence": [e.hash for e in found.decisions],
        "ledger_head": ledger.head,
    }
    if found.missing and found.broken:
        body["break_glass"] = asdict(found.broken)
    entry = ledger.append("grant", requirement.digest, body, project=requirement.project, actor=actor)
    return Grant(
        requirement.gate, requirement.project, requirement.digest, requirement.environment, entry.hash
    )


def check(ledger: Ledger, grant: dict[str, Any], *, gate: Gate, project: str, digest: str) -> None:
    """Hold a grant against the ledger, as the stage behind the gate does.

    Raises:
        Refused: forged, for another digest or gate, or its sign-offs were withdrawn since.
    """
    entry = check_given(ledger, grant, gate=gate, project=project, digest=digest)
    requirement = Requirement(**entry.body["requirement"])
    found = standing(ledger, requirement)
    if not found.satisfied:
        raise refusal(requirement, found, awaited(ledger, requirement, gate), gate)


def check_given(ledger: Ledger, grant: dict[str, Any], *, gate: Gate, project: str, digest: str) -> Entry:
    """That a grant was given for this digest, whatever became of its sign-offs since.

    Raises:
        Refused: forged, or for another digest or gate.
    """
    where, do = f"{project}/{gate}", "run it with `ftaas run`, which asks the gate"
    entry = ledger.entry(str(grant.get("entry", "")))
    if entry is None or entry.kind != "grant" or not ledger.is_authentic(entry):
        raise Refused(
            f"the grant for {short(digest)} is not in the ledger", where, str(grant.get("entry")), do
        )
    if (entry.project, entry.subject, entry.body["gate"]) != (project, digest, gate):
        raise Refused(
            f"the grant is not for {short(digest)}", where, f"{entry.body['gate']} {short(entry.subject)}", do
        )
    return entry
