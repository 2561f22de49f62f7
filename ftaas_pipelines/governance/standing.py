"""How far a requirement is met: which decisions of the ledger count, which do not, and why not."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from ftaas_pipelines.governance import break_glass
from ftaas_pipelines.governance.break_glass import Broken
from ftaas_pipelines.governance.ledger import Entry, Ledger
from ftaas_pipelines.governance.requirement import Requirement

APPROVING = ("approve", "approve_with_conditions")
CLOCKS_DIFFER = timedelta(minutes=5)
"""How far two machines' clocks may lie apart before an entry counts as dated in the future."""


@dataclass(frozen=True)
class Standing:
    """How far a requirement is met.

    Attributes:
        missing: role to how many sign-offs are still needed.
        refusals: the latest decisions that say changes or reject.
        decisions: the approvals that count.
        requests: the open review requests, by role. One whose answer became void is not open: the role
            must be asked again.
        void: approvals that do not count, each with the reason.
        broken: the break-glass that lets this through without approvals, while it holds.
    """

    missing: dict[str, int]
    refusals: list[Entry]
    decisions: list[Entry]
    requests: dict[str, Entry]
    void: list[tuple[Entry, str]] = field(default_factory=list[tuple[Entry, str]])
    broken: Broken | None = None

    @property
    def satisfied(self) -> bool:
        # Break-glass stands for approvals that are missing, never against somebody's plain no.
        return not self.refusals and (not self.missing or self.broken is not None)

    @property
    def said(self) -> str:
        """Who let it through, in one line."""
        if self.missing and self.broken:
            return str(self.broken)
        people = [f"{e.actor} as {e.body['role']} at {e.at}" for e in self.decisions]
        return ", ".join(people) or "by platform policy"


def standing(ledger: Ledger, requirement: Requirement, at: datetime | None = None) -> Standing:
    """Read the ledger: who has signed, who has refused, who is awaited. Only authentic entries count.

    Args:
        at: as of when; now, unless told.
    """
    entries = ledger.entries(project=requirement.project, subject=requirement.digest, authentic=True)
    return weigh(entries, requirement, at)


def weigh(entries: Sequence[Entry], requirement: Requirement, at: datetime | None = None) -> Standing:
    """The standing that these entries of one subject give; see `standing`.

    Of each person and role only the latest decision counts, and only when it was taken under the same
    terms by someone who still may, was not withdrawn and has not expired. One person never counts in two
    roles. A refusal neither expires nor goes with its author's place in the project.
    """
    at = at or datetime.now(UTC)
    revoked = {
        e.body["decision"]: str(e.body.get("why", "")) for e in entries if e.kind == "decision_revoked"
    }
    latest: dict[tuple[str, str], Entry] = {}
    requests: dict[str, Entry] = {}
    foreign: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        if entry.kind not in ("review_requested", "decision") or not _concerns(requirement, entry):
            continue
        if entry.body.get("terms") != requirement.terms:
            if entry.kind == "decision":
                foreign[(entry.body["role"], entry.actor.lower())] = entry
        elif entry.kind == "review_requested":
            requests[entry.body["role"]] = entry
        else:
            latest[(entry.body["role"], entry.actor.lower())] = entry
    approvals: list[Entry] = []
    refusals: list[Entry] = []
    void: list[tuple[Entry, str]] = []
    for (role, person), entry in latest.items():
        if entry.body["decision"] not in APPROVING:
            if entry.hash not in revoked and requirement.refusal_stands(role, person):
                refusals.append(entry)
        elif why := _void(requirement, entry, revoked, at):
            void.append((entry, why))
        else:
            approvals.append(entry)
    void += [
        (e, "was given under other terms: a threshold changed since")
        for person, e in foreign.items()
        if person not in latest and e.body["decision"] in APPROVING
    ]
    counted, missing = _count(requirement, approvals)
    answered = {e.body.get("request") for e, _ in void}
    awaited = {r: requests[r] for r in missing if r in requests and requests[r].hash not in answered}
    broken = break_glass.holds(entries, requirement, at)
    return Standing(missing, refusals, counted, awaited, void, broken)


def _concerns(requirement: Requirement, entry: Entry) -> bool:
    body = entry.body
    return body.get("role") in requirement.roles and body.get("environment") == requirement.environment


def _void(requirement: Requirement, entry: Entry, revoked: dict[str, str], at: datetime) -> str:
    """Why an approval does not count; empty when it does."""
    role = entry.body["role"]
    if entry.hash in revoked:
        return f"was withdrawn: {revoked[entry.hash]}"
    if entry.actor.lower() in (x.lower() for x in requirement.excluded):
        return "is by someone who owns the data or started the training"
    if not requirement.may_sign(role, entry.actor):
        return "is by someone who no longer holds the role"
    if requirement.valid_days is None:
        return ""
    said = datetime.fromisoformat(entry.at)
    if said > at + CLOCKS_DIFFER:
        return f"is dated in the future ({entry.at}): a clock was wrong"
    ends = said + timedelta(days=requirement.valid_days)
    return f"expired on {ends:%Y-%m-%d %H:%M} UTC" if ends <= at else ""


def _count(requirement: Requirement, approvals: Iterable[Entry]) -> tuple[list[Entry], dict[str, int]]:
    """The approvals that count and what is missing, each person in one role at most.

    Whoever signed in one role alone is taken first, so that one who signed in two fills the gap.
    """
    approvals = list(approvals)
    roles_of: dict[str, set[str]] = defaultdict(set)
    for entry in approvals:
        roles_of[entry.actor.lower()].add(entry.body["role"])
    taken: dict[str, str] = {}
    missing: dict[str, int] = {}
    for role, needed in requirement.roles.items():
        able = [p for p, roles in roles_of.items() if role in roles and p not in taken]
        chosen = sorted(able, key=lambda p: len(roles_of[p]))[:needed]
        taken.update(dict.fromkeys(chosen, role))
        if len(chosen) < needed:
            missing[role] = needed - len(chosen)
    for entry in approvals:  # more than were needed: evidence too, where they signed in no other role
        taken.setdefault(entry.actor.lower(), entry.body["role"])
    return [e for e in approvals if taken[e.actor.lower()] == e.body["role"]], missing


def without(requirement: Requirement, person: str) -> Requirement:
    """The requirement as it is when this person must not count as signer."""
    return replace(requirement, excluded=sorted({*requirement.excluded, person}))
