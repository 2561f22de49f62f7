"""Breaking the glass, and the review that looks back at it: one cannot be had without the other."""

from dataclasses import dataclass

from ftaas_pipelines.errors import Refused
from ftaas_pipelines.governance import break_glass
from ftaas_pipelines.governance.break_glass import ROLE
from ftaas_pipelines.governance.gates import refusal, standing
from ftaas_pipelines.governance.ledger import Entry, Ledger
from ftaas_pipelines.governance.requirement import Requirement, policy_version
from ftaas_pipelines.projects.policy import PlatformPolicy
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.review.sign_offs import requests
from ftaas_pipelines.store import short


@dataclass(frozen=True)
class Word:
    """What came of one person's word: the first waits for a second; the second opens the way.

    Attributes:
        complete: it is the second one.
        text: what holds now, in one line.
        until: when it ends (UTC); empty after the first word.
        review: id of the review that looks back; empty after the first word.
    """

    entry: Entry
    complete: bool
    text: str
    until: str = ""
    review: str = ""


def break_the_glass(
    ledger: Ledger,
    requirement: Requirement,
    policy: PlatformPolicy,
    project: Project,
    *,
    by: str,
    reason: str,
) -> Word:
    """Take one person's word for letting a release through; the second of two opens the way.

    Raises:
        InputInvalid: no reason.
        Refused: it is approved already, somebody said no, this person may not, both words are of one
            person, nobody would be left to look back, or an earlier look back is still open.
    """
    where = f"{requirement.project}/deployment_{requirement.environment}"
    found = standing(ledger, requirement)
    if found.refusals:
        raise refusal(requirement, found, [], where.partition("/")[2])
    if found.satisfied:
        raise Refused("nothing is to be broken: it may go there", where, found.said, "`ftaas run` it")
    _look_back_first(ledger, requirement, where)
    first = break_glass.first_word(ledger, requirement, policy.break_glass.hours)
    if first is None:
        entry = break_glass.say(ledger, requirement, policy, by=by, reason=reason, first=None)
        text = (
            f"{by} would break the glass; within {policy.break_glass.hours:g} h a second person says so too"
        )
        return Word(entry, False, text)
    break_glass.hold_against_rules(requirement, by, reason, first)
    review = _look_back(ledger, requirement, policy, project, first, by, reason, where)
    entry = break_glass.say(ledger, requirement, policy, by=by, reason=reason, first=first)
    until = break_glass.ends(entry)
    target = f"release {short(requirement.digest)} may go to {requirement.environment}"
    return Word(entry, True, f"{target} without its approvals until {until}", until, review)


def _look_back_first(ledger: Ledger, requirement: Requirement, where: str) -> None:
    """Refuse a second break-glass while nobody has looked back at the first."""
    for review in requests.reviews(ledger, project=requirement.project, role=ROLE):
        words = ledger.entries("break_glass", project=requirement.project, authentic=True)
        first = review.summary["first"]
        if review.environment == requirement.environment and first in {e.body["first"] for e in words}:
            raise Refused(
                "nobody has looked back at the last break-glass yet",
                where,
                review.id,
                f"have {' or '.join(review.who)} answer it: `{review.link}`",
            )


def _look_back(
    ledger: Ledger,
    requirement: Requirement,
    policy: PlatformPolicy,
    project: Project,
    first: Entry,
    by: str,
    reason: str,
    where: str,
) -> str:
    """Ask a third person to look back; opened before the glass breaks, so that it cannot be left out."""
    named = [p for p in policy.break_glass.people if "*" not in p]
    people = list(dict.fromkeys([*named, *project.people.approvers, *project.people.rai_reviewers]))
    asked = Requirement(
        "deploy",
        requirement.project,
        requirement.digest,
        requirement.environment,
        {ROLE: 1},
        {ROLE: people},
        sorted({*requirement.excluded, first.actor, by}),
        about=first.hash,
    )
    if not asked.able(ROLE):
        raise Refused(
            "nobody would be left to look back at this",
            where,
            ", ".join([first.actor, by]),
            "name a third person in break_glass.people of the platform policy, or another approver",
        )
    summary = {
        "first": first.hash,
        "people": [first.actor, by],
        "reason": [first.body["reason"], reason.strip()],
        "release": requirement.digest,
        "until": f"{policy.break_glass.hours:g} hours after the second word",
    }
    asset = where.partition("/")[2]
    version = policy_version(policy)
    requests.open_requests(ledger, asked, asset=asset, summary=summary, actor=by, policy=version)
    return requests.identifier_of(asked, ROLE)
