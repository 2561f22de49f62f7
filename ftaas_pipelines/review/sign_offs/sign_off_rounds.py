"""Sign-offs taken in a labelling tool: a round per request, answers to decisions, and reading them again.

The tool carries a request's form out and the answers back. What counts is judged by `acceptance` and
becomes a `decision` of the ledger (`sign_off_answers`), with evidence of where the answer stands, so that
it can be read again before anything crosses a gate.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from ftaas_pipelines.errors import FtaasError, Problem
from ftaas_pipelines.governance.gates import standing
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.governance.requirement import Requirement, policy_version
from ftaas_pipelines.projects.policy import ROLES, PlatformPolicy
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.review import acceptance, round_log
from ftaas_pipelines.review.round_log import Desk, RoundState
from ftaas_pipelines.review.rounds import Kind, Labelling, Opened, Round, Task
from ftaas_pipelines.review.sign_offs import requests
from ftaas_pipelines.review.sign_offs.requests import Review
from ftaas_pipelines.review.sign_offs.sign_off_answers import VIA, Collected, Look
from ftaas_pipelines.store import Store, digest_of, short

SIGN_OFFS: tuple[Kind, ...] = ("sme", "rai", "approver", "break_glass")
LEASE_S = 600
_TITLE = 41
"""Characters: with the mark of a closed round, no more fit into Label Studio's 50."""
_WORDS = {"sme": "SME", "rai": "RAI", "break_glass": "break-glass"}


# -- asking ----------------------------------------------------------------------------------------


def sign_off_round(review: Review) -> tuple[Round, Task]:
    """The round of a request as it was asked last. Asked again, it is another round."""
    kind = cast(Kind, review.role)
    form, data = requests.shown(review.role, review.summary)
    identifier = digest_of({"review": review.id, "request": review.request})
    word = _WORDS.get(review.role, review.environment)
    tail = f" {word} {review.digest[:8]} {identifier[:6]}"
    asked = Round(
        id=identifier,
        project=review.project,
        kind=kind,
        subject=review.digest,
        title=review.project[: _TITLE - len(tail)] + tail,
        form=form,
        instruction=f"{review.title}. {review.needed} needed. Your decision is kept with what you see here.",
        who=list(review.who),
        per_task=review.needed,
        about={"review": review.id, "request": review.request, "environment": review.environment},
    )
    return asked, Task(review.id, data)


def open_round(
    ledger: Ledger, store: Store, labelling: Labelling, review: Review, actor: str = "platform"
) -> Opened:
    """Put a request before its people in the tool; doing so twice makes one round.

    Raises:
        FtaasError: the tool is out of reach, or too few of its people have an account of their own.
    """
    asked, task = sign_off_round(review)
    with store.lease(_lease(review.project), LEASE_S):
        desk = Desk(ledger, store, labelling, actor)
        return desk.put_before(asked, [task], asset=review.asset).opened


# -- collecting ------------------------------------------------------------------------------------


def collect(
    ledger: Ledger,
    store: Store,
    labelling: Labelling,
    project: Project,
    policy: PlatformPolicy,
    *,
    marks: dict[str, str] | None = None,
    actor: str = "platform",
) -> Collected:
    """Bring the answers of a project's open rounds into the ledger; end the rounds nobody asks any more.

    A round that somebody deleted before anybody answered is opened anew.

    Args:
        marks: round to the mark it had last time; a round that has it still is passed over, so that
            looking stays cheap. Brought up to date here. None: every answer is read.

    Raises:
        FtaasError: the tool is out of reach, or a round in it was changed. What was collected is kept.
    """
    found = Collected()
    if not any(r.state == "open" for r in _rounds(ledger, project.name)):
        return found
    desk, pins = Desk(ledger, store, labelling, actor), acceptance.pinned(ledger, labelling)
    look = Look(desk, pins, _holds_role(policy, project), policy_version(policy))
    # A mark counts answers; whose answers count may change too.
    who = digest_of([sorted(pins.items()), project.people.model_dump(), policy_version(policy)])
    problems: list[Problem] = []
    with store.lease(_lease(project.name), LEASE_S):
        _end_superseded(desk, project.name)
        rounds = _live(ledger, project.name, labelling.server)
        for round_, state in zip(rounds, labelling.states([r.opened for r in rounds]), strict=True):
            mark = f"{who}:{state.mark}"
            if state.exists and marks is not None and marks.get(round_.id) == mark:
                continue
            withdrawn = len(found.revoked)
            try:
                look.settle(round_, found, exists=state.exists)
                if not state.exists and len(found.revoked) == withdrawn:
                    _open_anew(desk, round_)
            except FtaasError as error:  # a form that was changed keeps no other round from being read
                problems += error.problems
                continue
            if marks is not None:
                marks[round_.id] = mark
    if problems:
        raise FtaasError(problems)
    return found


def _open_anew(desk: Desk, round_: RoundState) -> None:
    """Put a question that the tool lost before its people again, while it is still asked."""
    review = requests.find(desk.ledger, round_.about["review"])
    if (review.state, review.request) == ("open", round_.about["request"]):
        asked, task = sign_off_round(review)
        desk.put_before(asked, [task], asset=review.asset)


def reread(
    ledger: Ledger,
    store: Store,
    labelling: Labelling | None,
    requirement: Requirement,
    asset: str,
    actor: str = "platform",
) -> Collected:
    """Read every answer again on which a requirement rests, just before the gate; withdraw what changed.

    Answers that nobody has collected yet are taken in too: a refusal may be among them.

    Raises:
        FtaasError: the tool is out of reach: nothing may cross the gate on what cannot be read again.
    """
    found = Collected()
    where = f"{requirement.project}/{asset}"
    rests_on = {
        (e.body["evidence"]["server"], e.body["evidence"]["round"])
        for e in standing(ledger, requirement).decisions
        if e.body.get("via") == VIA
    }
    known = {(r.opened.server, r.id): r for r in _rounds(ledger, requirement.project)}
    open_now = {key for key, r in known.items() if r.state == "open" and _is_about(r, requirement)}
    if not rests_on | open_now or (labelling is None and not rests_on):
        return found
    try:
        if labelling is None or {server for server, _ in rests_on} - {labelling.server}:
            raise FtaasError(
                "its sign-offs were given in another labelling tool than the one that is set",
                "FTAAS_LABEL_STUDIO_URL",
                labelling.server if labelling else "none",
                "start that Label Studio (`make dev`), or set it to that one",
            )
        live = {key for key in open_now if key[0] == labelling.server}
        pins = acceptance.pinned(ledger, labelling)
        look = Look(Desk(ledger, store, labelling, actor), pins, requirement.may_sign)
        with store.lease(_lease(requirement.project), LEASE_S):
            for key in sorted(live | rests_on):
                if key not in known:
                    what = "a sign-off names a round that was opened elsewhere since"
                    raise FtaasError(what, f"round {short(key[1])}", do="have it signed again")
                exists = labelling.states([known[key].opened])[0].exists
                look.settle(known[key], found, exists=exists, known_only=key not in live)
    except FtaasError as error:
        do = "nothing is lost; until its sign-offs can be read again, this gate stays shut"
        problems = [
            replace(p, where=f"{where}: {p.where}", do=f"{p.do}; {do}" if p.do else do)
            for p in error.problems
        ]
        raise FtaasError(problems) from error
    return found


def _holds_role(policy: PlatformPolicy, project: Project) -> Callable[[str, str], bool]:
    """Whether a person holds the role by project and policy as they are now."""

    def may(role: str, email: str) -> bool:
        if role not in ROLES:
            return True  # a look back asks people by name
        named = email.lower() in (p.lower() for p in project.people.holding(role))
        return named and policy.roles.allows(role, email)

    return may


# -- rounds in the ledger --------------------------------------------------------------------------


def _rounds(ledger: Ledger, project: str) -> list[RoundState]:
    return round_log.states(ledger, project, SIGN_OFFS)


def _live(ledger: Ledger, project: str, server: str) -> list[RoundState]:
    """The sign-off rounds that are open in this tool."""
    return [r for r in _rounds(ledger, project) if (r.state, r.opened.server) == ("open", server)]


def _is_about(round_: RoundState, requirement: Requirement) -> bool:
    asked = (round_.entry.subject, round_.about["environment"])
    return asked == (requirement.digest, requirement.environment) and round_.kind in requirement.roles


def _end_superseded(desk: Desk, project: str) -> None:
    """Close, in the tool too, rounds of requests that were superseded or asked again since."""
    asked = {r.id: r for r in requests.reviews(desk.ledger, project=project, only_open=False)}
    for round_ in _live(desk.ledger, project, desk.labelling.server):
        review = asked.get(round_.about["review"])
        if review is None or (review.request == round_.about["request"] and review.state != "superseded"):
            continue
        newer = "a newer digest" if review.state == "superseded" else "the same question, asked again"
        desk.supersede([round_], newer)


def _lease(project: str) -> str:
    return f"answers-{project}"


def answered(ledger: Ledger, labelling: Labelling, reviews: Sequence[Review]) -> dict[str, int]:
    """How many answers each review's round holds in the tool, by review id."""
    projects = {r.project for r in reviews}
    live = {r.about["review"]: r for p in projects for r in _live(ledger, p, labelling.server)}
    asked = [(r.id, live[r.id]) for r in reviews if r.id in live]
    states = labelling.states([round_.opened for _, round_ in asked])
    return {identifier: state.answered for (identifier, _), state in zip(asked, states, strict=True)}
