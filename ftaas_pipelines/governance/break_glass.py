"""Break-glass: two people and a reason let one release through for some hours, loudly.

Each of the two says so in an entry of their own. The second entry counts only beside the review
request that looks back at it (`review.look_back` opens it first), which neither of the two can close.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ftaas_pipelines.errors import InputInvalid, Refused
from ftaas_pipelines.governance.ledger import Entry, Ledger
from ftaas_pipelines.governance.requirement import Requirement, matches, policy_version
from ftaas_pipelines.projects.policy import PlatformPolicy

ROLE = "break_glass"


@dataclass(frozen=True)
class Broken:
    """A break-glass that holds: who, why, until when (UTC), and its ledger entry."""

    by: list[str]
    reason: str
    until: str
    entry: str

    def __str__(self) -> str:
        return f"BREAK-GLASS by {' and '.join(self.by)} until {self.until}: {self.reason}"


def holds(entries: Sequence[Entry], requirement: Requirement, at: datetime | None = None) -> Broken | None:
    """The break-glass that lets this release into this environment now, or None.

    Args:
        entries: of the release's digest, authentic ones only.
    """
    if requirement.gate != "deploy":
        return None
    at = at or datetime.now(UTC)
    own = {e.hash: e for e in entries if e.kind == "break_glass" and _same(requirement, e)}
    looked_at = {e.body["summary"].get("first") for e in entries if _is_look_back(e)}
    for second in reversed(own.values()):
        first = own.get(str(second.body["first"]))
        if first is None or first.hash not in looked_at:
            continue
        people = [first.actor, second.actor]
        if people[0].lower() == people[1].lower() or not all(may(requirement, p) for p in people):
            continue
        said = datetime.fromisoformat(second.at)
        # Before its own time only a clock that was set back can ask.
        if said - timedelta(minutes=5) <= at < said + timedelta(hours=second.body["hours"]):
            return Broken(people, first.body["reason"], ends(second), second.hash)
    return None


def may(requirement: Requirement, email: str) -> bool:
    """Whether this person may break the glass for this release: by policy, and not their own work."""
    return matches(requirement.break_glass, email) and email.lower() not in (
        x.lower() for x in requirement.excluded
    )


def first_word(ledger: Ledger, requirement: Requirement, hours: float) -> Entry | None:
    """The word of one person that waits for a second, not older than `hours`."""
    entries = ledger.entries(project=requirement.project, subject=requirement.digest, authentic=True)
    own = [e for e in entries if e.kind == "break_glass" and _same(requirement, e)]
    used = {e.body["first"] for e in own}
    now = datetime.now(UTC)
    for entry in reversed(own):
        age = now - datetime.fromisoformat(entry.at)
        if not entry.body["first"] and entry.hash not in used and age < timedelta(hours=hours):
            return entry
    return None


def say(
    ledger: Ledger,
    requirement: Requirement,
    policy: PlatformPolicy,
    *,
    by: str,
    reason: str,
    first: Entry | None,
) -> Entry:
    """Record one person's word; with `first`, the other's, it is complete.

    Raises:
        InputInvalid: no reason.
        Refused: this person may not, or is the same as the first.
    """
    hold_against_rules(requirement, by, reason, first)
    body = {
        "environment": requirement.environment,
        "terms": requirement.terms,
        "reason": reason.strip(),
        "hours": policy.break_glass.hours,
        "first": first.hash if first else "",
        "policy": policy_version(policy),
    }
    return ledger.append("break_glass", requirement.digest, body, project=requirement.project, actor=by)


def hold_against_rules(requirement: Requirement, by: str, reason: str, first: Entry | None) -> None:
    """Hold one person's word against the rules; raises as `say` does."""
    where = f"{requirement.project}/deployment_{requirement.environment}"
    if not reason.strip():
        raise InputInvalid("break-glass needs a reason", "--reason", do="say what cannot wait, and why")
    if not may(requirement, by):
        barred = {x.lower() for x in requirement.excluded}
        allowed = [p for p in requirement.break_glass if p.lower() not in barred]
        raise Refused(
            "this person may not break the glass",
            where,
            by,
            f"the platform policy allows {', '.join(allowed) or 'nobody'} (break_glass.people), and never "
            "who owns the data or started the training",
        )
    if first and first.actor.lower() == by.lower():
        raise Refused("break-glass takes two different people", where, by, "have a second person say so too")


def ends(second: Entry) -> str:
    """When a complete break-glass ends: UTC, ISO 8601.

    Args:
        second: the second person's word.
    """
    at = datetime.fromisoformat(second.at) + timedelta(hours=second.body["hours"])
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def _same(requirement: Requirement, entry: Entry) -> bool:
    return entry.body["terms"] == requirement.terms and entry.body["environment"] == requirement.environment


def _is_look_back(entry: Entry) -> bool:
    return entry.kind == "review_requested" and entry.body.get("role") == ROLE
