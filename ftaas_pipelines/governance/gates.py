"""One question, asked before anything crosses: does the ledger hold what the policy asks for?

`require()` is called by the asset behind a gate, in its own body, just before it launches anything.
It records a grant and returns it; the stage that does the work calls `check()` and refuses a grant
that the ledger does not know, that names another digest, or whose sign-offs no longer hold.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ftaas_pipelines.errors import Problem, Refused
from ftaas_pipelines.governance.ledger import Entry, Ledger
from ftaas_pipelines.projects.policy import PlatformPolicy
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.store import digest_of, short

Gate = Literal["train", "deploy"]
APPROVING = ("approve", "approve_with_conditions")
ROLE_NAMES = {"sme": "SME", "rai": "Responsible AI", "approver": "approver"}


@dataclass(frozen=True)
class Requirement:
    """What a gate asks for: so many sign-offs, by role, on one digest.

    Attributes:
        roles: role to how many people; zero means the role is not asked.
        people: role to the e-mails that may sign for this project.
        excluded: e-mails that may not sign although they hold a role (separation of duties).
        thresholds: least scores that the approvers saw; a change voids their approval.
    """

    gate: Gate
    project: str
    digest: str
    environment: str
    roles: dict[str, int]
    people: dict[str, list[str]]
    excluded: list[str] = field(default_factory=list)
    thresholds: dict[str, float] = field(default_factory=dict)

    @property
    def terms(self) -> str:
        """Digest of what a decision was asked under. Decisions taken under other terms do not count."""
        return digest_of(
            {
                "gate": self.gate,
                "digest": self.digest,
                "environment": self.environment,
                "thresholds": self.thresholds,
            }
        )


@dataclass(frozen=True)
class Standing:
    """How far a requirement is met.

    Attributes:
        missing: role to how many sign-offs are still needed.
        refusals: the latest decisions that say changes or reject.
        decisions: the decisions that count.
        requests: the open review requests, by role.
    """

    missing: dict[str, int]
    refusals: list[Entry]
    decisions: list[Entry]
    requests: dict[str, Entry]

    @property
    def satisfied(self) -> bool:
        return not self.missing and not self.refusals


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


def policy_version(policy: PlatformPolicy) -> str:
    """Digest of what a platform policy says, whatever its layout: stands in every ledger entry."""
    return digest_of(policy.model_dump(mode="json"))


def training_requirement(policy: PlatformPolicy, project: Project, splits: str) -> Requirement:
    """SME and Responsible-AI sign-off of the splits that an adapter is trained on."""
    roles = policy.reviews(project)
    return Requirement(
        "train",
        project.name,
        splits,
        "",
        roles,
        {role: project.people.holding(role) for role in roles},
        _excluded(policy, project),
    )


def deployment_requirement(
    policy: PlatformPolicy, project: Project, release: str, environment: str, trained_by: Sequence[str] = ()
) -> Requirement:
    """Approval of a release for one environment; zero approvers means it passes by policy.

    Args:
        trained_by: who started its training; separation of duties keeps them from approving it.
    """
    return Requirement(
        "deploy",
        project.name,
        release,
        environment,
        {"approver": policy.approvals(project, environment)},
        {"approver": project.people.holding("approver")},
        _excluded(policy, project, trained_by),
        {**policy.thresholds(project), "champion_margin": project.evaluation.champion_margin},
    )


def _excluded(policy: PlatformPolicy, project: Project, others: Sequence[str] = ()) -> list[str]:
    return sorted({*project.people.owners, *others}) if policy.separation_of_duties else []


def standing(ledger: Ledger, requirement: Requirement) -> Standing:
    """Read the ledger: who has signed, who has refused, who is awaited.

    Of each person only the latest decision counts, and only when it is authentic, was taken under the
    same terms, and by someone who may. One person never counts in two roles.
    """
    latest: dict[tuple[str, str], Entry] = {}
    requests: dict[str, Entry] = {}
    for entry in ledger.entries(project=requirement.project, subject=requirement.digest, authentic=True):
        if entry.body.get("terms") != requirement.terms:
            continue
        if entry.kind == "review_requested":
            requests[entry.body["role"]] = entry
        elif entry.kind == "decision" and _may_sign(requirement, entry):
            latest[(entry.body["role"], entry.actor.lower())] = entry
    refusals = [e for e in latest.values() if e.body["decision"] not in APPROVING]
    approvals = [e for e in latest.values() if e.body["decision"] in APPROVING]
    counted: list[Entry] = []
    missing: dict[str, int] = {}
    taken: set[str] = set()
    for role, needed in requirement.roles.items():
        signers = [e for e in approvals if e.body["role"] == role and e.actor.lower() not in taken]
        taken.update(e.actor.lower() for e in signers)
        counted += signers
        if len(signers) < needed:
            missing[role] = needed - len(signers)
    return Standing(missing, refusals, counted, {r: requests[r] for r in missing if r in requests})


def _may_sign(requirement: Requirement, decision: Entry) -> bool:
    signer = decision.actor.lower()
    people = requirement.people.get(decision.body["role"], [])
    return signer in (p.lower() for p in people) and signer not in (x.lower() for x in requirement.excluded)


def awaited(ledger: Ledger, requirement: Requirement, asset: str) -> list[dict[str, Any]]:
    """Who is being waited for, since when, and where to answer: the `waiting` of interface.md."""
    found = standing(ledger, requirement)
    rows: list[dict[str, Any]] = []
    for role in found.missing:
        request = found.requests.get(role)
        rows.append(
            {
                "asset": asset,
                "role": role,
                "who": [p for p in requirement.people[role] if p not in requirement.excluded],
                "since": request.at if request else None,
                "link": request.body.get("link") if request else None,
                "review": request.body["id"] if request else None,
            }
        )
    return rows


def refusal(
    requirement: Requirement, found: Standing, waiting: Sequence[dict[str, Any]], asset: str
) -> Refused:
    """The error that says why not: names the digest, the missing roles, and what to do."""
    target = f" for {requirement.environment}" if requirement.environment else ""
    noun = "splits" if requirement.gate == "train" else "release"
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
        link = f"`{row['link']}`" if row["link"] else "materialise the review request first"
        problems.append(
            Problem(
                f"{noun} {short(requirement.digest)}{target} is not signed: waiting for "
                f"{ROLE_NAMES[row['role']]} sign-off by {' or '.join(row['who']) or 'nobody named'}"
                + (f" since {row['since']}" if row["since"] else ""),
                where,
                do=link,
            )
        )
    return Refused(problems, waiting=waiting)


def require(ledger: Ledger, requirement: Requirement, *, asset: str, actor: str) -> Grant:
    """Leave to cross the gate, recorded in the ledger.

    Raises:
        Refused: a sign-off is missing or someone refused; names digest, role and what to do.
    """
    found = standing(ledger, requirement)
    if not found.satisfied:
        raise refusal(requirement, found, awaited(ledger, requirement, asset), asset)
    entry = ledger.append(
        "grant",
        requirement.digest,
        {
            "gate": requirement.gate,
            "environment": requirement.environment,
            "asset": asset,
            "requirement": asdict(requirement),
            "evidence": [e.hash for e in found.decisions],
            "ledger_head": ledger.head,
        },
        project=requirement.project,
        actor=actor,
    )
    return Grant(
        requirement.gate, requirement.project, requirement.digest, requirement.environment, entry.hash
    )


def check(ledger: Ledger, grant: dict[str, Any], *, gate: Gate, project: str, digest: str) -> None:
    """Hold a grant against the ledger, as the stage behind the gate does.

    Raises:
        Refused: forged, for another digest or gate, or its sign-offs were withdrawn since.
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
    requirement = Requirement(**entry.body["requirement"])
    found = standing(ledger, requirement)
    if not found.satisfied:
        raise refusal(requirement, found, awaited(ledger, requirement, gate), gate)
