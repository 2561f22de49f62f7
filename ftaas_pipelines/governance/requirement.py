"""What a gate asks for: how many sign-offs, by whom, on which digest, and for how long they hold."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, Literal

from ftaas_pipelines.projects.policy import PlatformPolicy
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.store import digest_of

Gate = Literal["train", "deploy"]
ROLE_NAMES = {
    "sme": "SME",
    "rai": "Responsible AI",
    "approver": "approver",
    "break_glass": "break-glass look-back",
}


@dataclass(frozen=True)
class Requirement:
    """What a gate asks for: so many sign-offs, by role, on one digest.

    Grants keep it as it was (`Requirement(**body)`), so a new field needs a default.

    Attributes:
        roles: role to how many people; zero means the role is not asked.
        people: role to the e-mails that may sign for this project: project and platform policy agree.
        excluded: e-mails that may not sign although they hold a role (separation of duties).
        thresholds: least scores that the approvers saw; a change voids their approval.
        valid_days: an approval counts for so long; None: for ever.
        may_refuse: role to the e-mails or patterns whose refusal stands: those of the platform policy, so
            that a project cannot drop a refusal by dropping its author. Empty: `people`.
        break_glass: e-mails or patterns that may let this through without approvals; two of them do.
        separate: who starts the work behind the gate does not count as signer.
        about: what else the question is bound to, such as the break-glass that a review looks back at.
    """

    gate: Gate
    project: str
    digest: str
    environment: str
    roles: dict[str, int]
    people: dict[str, list[str]]
    excluded: list[str] = field(default_factory=list[str])
    thresholds: dict[str, float] = field(default_factory=dict[str, float])
    valid_days: float | None = None
    may_refuse: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    break_glass: list[str] = field(default_factory=list[str])
    separate: bool = False
    about: str = ""

    @property
    def terms(self) -> str:
        """Digest of what a decision was asked under. Decisions taken under other terms do not count."""
        bound = {
            "gate": self.gate,
            "digest": self.digest,
            "environment": self.environment,
            "thresholds": self.thresholds,
        }
        return digest_of({**bound, "about": self.about} if self.about else bound)

    @property
    def noun(self) -> str:
        return "splits" if self.gate == "train" else "release"

    def able(self, role: str) -> list[str]:
        """The e-mails that may sign in a role, less those whom separation of duties keeps from it."""
        barred = {x.lower() for x in self.excluded}
        return [p for p in self.people.get(role, []) if p.lower() not in barred]

    def may_sign(self, role: str, email: str) -> bool:
        return email.lower() in (p.lower() for p in self.able(role))

    def refusal_stands(self, role: str, email: str) -> bool:
        """Whether this person's refusal closes the gate: also when the project names them no longer."""
        return self.may_sign(role, email) or matches(self.may_refuse.get(role, []), email)


def matches(patterns: Sequence[str], email: str) -> bool:
    """Whether an e-mail is among e-mails or patterns such as `*@acme.org`, in any case."""
    return any(fnmatch(email.lower(), pattern.lower()) for pattern in patterns)


def policy_version(policy: PlatformPolicy) -> str:
    """Digest of what a platform policy says, whatever its layout: stands in every ledger entry."""
    return digest_of(policy.model_dump(mode="json"))


def training_requirement(
    policy: PlatformPolicy, project: Project, splits: str, submitted_by: Sequence[str] = ()
) -> Requirement:
    """SME and Responsible-AI sign-off of the splits that an adapter is trained on.

    Args:
        submitted_by: who brought the data, beside the project's owners: they never sign it.
    """
    return Requirement(
        "train",
        project.name,
        splits,
        "",
        policy.reviews(project),
        **_people(policy, project, ("sme", "rai"), submitted_by),
    )


def deployment_requirement(
    policy: PlatformPolicy, project: Project, release: str, environment: str, trained_by: Sequence[str] = ()
) -> Requirement:
    """Approval of a release for one environment; zero approvers means it passes by policy.

    Args:
        trained_by: who started its training or brought its data: they never approve it.
    """
    return Requirement(
        "deploy",
        project.name,
        release,
        environment,
        {"approver": policy.approvals(project, environment)},
        thresholds={**policy.thresholds(project), "champion_margin": project.evaluation.champion_margin},
        break_glass=list(policy.break_glass.people),
        **_people(policy, project, ("approver",), trained_by),
    )


def _people(
    policy: PlatformPolicy, project: Project, roles: Sequence[str], others: Sequence[str]
) -> dict[str, Any]:
    separate = policy.separation_of_duties
    return {
        # The policy may have taken a role from somebody whom the project still names.
        "people": {
            role: [p for p in project.people.holding(role) if policy.roles.allows(role, p)] for role in roles
        },
        "excluded": sorted({*project.people.owners, *others}) if separate else [],
        "valid_days": policy.sign_off_days(project),
        "may_refuse": {role: list(getattr(policy.roles, role)) for role in roles},
        "separate": separate,
    }
