"""Review requests and decisions in the ledger, wherever they were taken: Label Studio or the local inbox.

A request asks one role about one digest under fixed terms. Opening it twice makes one; a newer digest
supersedes what is still open for the same project, role and environment. It is asked again, with the
same id, when its answer no longer counts: expired, withdrawn, or by someone who lost the role.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

from ftaas_pipelines.errors import InputInvalid, Refused
from ftaas_pipelines.governance import standing as standings
from ftaas_pipelines.governance.break_glass import ROLE as LOOK_BACK
from ftaas_pipelines.governance.ledger import Entry, Ledger
from ftaas_pipelines.governance.requirement import ROLE_NAMES, Requirement
from ftaas_pipelines.review import forms
from ftaas_pipelines.review.rounds import Kind
from ftaas_pipelines.store import digest_of, short

Decision = Literal["approve", "approve_with_conditions", "changes", "reject"]
RISKS = ("low", "medium", "high")


@dataclass(frozen=True)
class Review:
    """One request as people see it.

    Attributes:
        state: open, decided (enough said so, or someone refused) or superseded.
        since: when it was asked, the last time.
        request: hash of the ledger entry that asked it last.
        times: how often it was asked; more than once when an earlier answer no longer counts.
        link: where to answer: a web address where a labelling tool asks too, else a command.
    """

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
    request: str = ""
    times: int = 1
    link: str = ""

    @property
    def title(self) -> str:
        what = f"release for {self.environment}" if self.environment else "dataset splits"
        word = "at" if self.role == LOOK_BACK else "sign-off of"
        return f"{ROLE_NAMES[self.role]} {word} {self.project} {what} {short(self.digest)}"


def open_requests(
    ledger: Ledger,
    requirement: Requirement,
    *,
    asset: str,
    summary: dict[str, Any],
    actor: str,
    policy: str = "",
) -> list[Entry]:
    """Open one request for each role that must be asked, or asked again; returns the new ones.

    Args:
        requirement: what the gate will ask for.
        asset: the asset that waits, such as `dataset_sign_off`.
        summary: what the reviewer should see: counts, findings, scores.
        policy: version of the platform policy (`gates.policy_version`).
    """
    opened: list[Entry] = []
    told = {
        **summary,
        "project": requirement.project,
        "digest": requirement.digest,
        "environment": requirement.environment,
    }
    for role in unasked(ledger, requirement):
        form, data = shown(role, told)
        identifier = identifier_of(requirement, role)
        body = {
            "id": identifier,
            "role": role,
            "environment": requirement.environment,
            "asset": asset,
            "gate": requirement.gate,
            "terms": requirement.terms,
            "needed": requirement.roles[role],
            "who": requirement.people[role],
            "excluded": requirement.excluded,
            "requirement": asdict(requirement),
            "policy": policy,
            "summary": told,
            "saw": digest_of_shown(form, data),
            "link": f"ftaas review show {identifier}",
        }
        opened.append(
            ledger.append(
                "review_requested", requirement.digest, body, project=requirement.project, actor=actor
            )
        )
    return opened


def shown(role: str, summary: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The form of a request, and what it shows: the same in a labelling tool and in the inbox."""
    kind = cast(Kind, role)
    return forms.form(kind), forms.render_sign_off(kind, summary)


def digest_of_shown(form: str, data: Mapping[str, Any]) -> str:
    """Digest of what somebody saw: the form and what it showed."""
    return digest_of({"form": digest_of(form), "data": digest_of(data)})


def unasked(ledger: Ledger, requirement: Requirement) -> list[str]:
    """The roles that must be asked, or asked again, for this requirement to be met one day.

    Asked again: when what was answered no longer counts, other people or more of them are needed, or a
    newer digest superseded the question before it was answered and the old content came back.
    """
    asked = ledger.entries("review_requested", project=requirement.project, authentic=True)
    newest = _newest(asked)
    own = {e.body["role"]: e for e in asked if e.body["terms"] == requirement.terms}
    found = standings.standing(ledger, requirement)
    refused = {e.body["role"] for e in found.refusals}
    roles: list[str] = []
    for role, needed in requirement.roles.items():
        request = own.get(role)
        if needed == 0 or (request and (role not in found.missing or role in refused)):
            continue
        if (
            request is None
            or role not in found.requests  # its answer is void
            or newest[_slot(request)] != request.body["id"]
            or (request.body["needed"], _who(request)) != (needed, requirement.able(role))
        ):
            roles.append(role)
    return roles


def reviews(
    ledger: Ledger, *, project: str | None = None, role: str | None = None, only_open: bool = True
) -> list[Review]:
    """The requests, oldest first. The newest of a (project, role, environment) supersedes the others."""
    asked = [e for e in ledger.entries("review_requested", project=project) if role in (None, e.body["role"])]
    times: dict[str, int] = defaultdict(int)
    for e in asked:
        times[e.body["id"]] += 1
    requests = {e.body["id"]: e for e in asked}  # asked again: the last time counts
    newest = _newest(asked)
    about: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for kind in ("decision", "decision_revoked"):
        for e in ledger.entries(kind, project=project):
            about[(e.project, e.subject)].append(e)
    rounds = ledger.entries("round_opened", project=project)
    links = {e.body["about"].get("request"): e.body["opened"]["link"] for e in rounds}
    found: list[Review] = []
    for e in requests.values():
        own = about[(e.project, e.subject)]
        state = "superseded" if newest[_slot(e)] != e.body["id"] else "open"
        if _answered(e, own):
            state = "decided"
        if only_open and state != "open":
            continue
        link = links.get(e.hash) or e.body["link"]
        found.append(_review(e, state, own, times[e.body["id"]], link))
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
    policy: str = "",
    via: str = "inbox",
    saw: str = "",
    evidence: Mapping[str, Any] | None = None,
) -> Entry:
    """Record one person's answer to a request.

    Args:
        policy: version of the platform policy now; the one it was asked under, unless told.
        via: the tool it was answered in.
        saw: digest of the form and what it showed; as it was when it was asked, unless told.
        evidence: where the tool keeps the answer, so that it can be read again.

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
    if risk not in ("", *RISKS):
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
    request = ledger.entry(review.request)
    assert request is not None
    body = {
        "review": identifier,
        "role": review.role,
        "environment": review.environment,
        "terms": review.terms,
        "request": review.request,
        "decision": decision,
        "comment": comment.strip(),
        "conditions": conditions.strip(),
        "risk": risk,
        "saw": saw or request.body.get("saw") or digest_of(review.summary),
        "policy": policy or request.body.get("policy", ""),
        "via": via,
    }
    if evidence:
        body["evidence"] = dict(evidence)
    return ledger.append("decision", review.digest, body, project=review.project, actor=by)


def identifier_of(requirement: Requirement, role: str) -> str:
    """The id of the review that asks a role: the same question has the same id."""
    return "r" + digest_of({"role": role, "terms": requirement.terms, "p": requirement.project})[:10]


def _slot(request: Entry) -> tuple[str, ...]:
    """What a newer request takes the place of an older one in. A look back is never superseded."""
    body = request.body
    own = (body["id"],) if body["role"] == LOOK_BACK else ()
    return (request.project, body["role"], body["environment"], *own)


def _newest(asked: Iterable[Entry]) -> dict[tuple[str, ...], str]:
    return {_slot(e): e.body["id"] for e in asked}


def _who(request: Entry) -> list[str]:
    barred = {x.lower() for x in request.body["excluded"]}
    return [p for p in request.body["who"] if p.lower() not in barred]


def _answered(request: Entry, entries: Sequence[Entry]) -> bool:
    """Whether enough people said so, or one refused, as the gate would count it."""
    role = request.body["role"]
    if "requirement" not in request.body:  # asked by an older version
        said = [e for e in entries if e.kind == "decision" and e.body["review"] == request.body["id"]]
        latest = {e.actor: e.body["decision"] for e in said}
        return len(latest) >= request.body["needed"] or not set(latest.values()) <= set(standings.APPROVING)
    found = standings.weigh([*entries, request], Requirement(**request.body["requirement"]))
    return role not in found.missing or any(e.body["role"] == role for e in found.refusals)


def _review(request: Entry, state: str, entries: Iterable[Entry], times: int, link: str) -> Review:
    body = request.body
    revoked = {e.body["decision"] for e in entries if e.kind == "decision_revoked"}
    said = ("decision", "comment", "conditions", "risk")
    decisions = [
        {"by": d.actor, "at": d.at, **{k: d.body[k] for k in said}, "revoked": d.hash in revoked}
        for d in entries
        if d.kind == "decision" and d.body["review"] == body["id"]
    ]
    return Review(
        body["id"],
        request.project,
        body["role"],
        request.subject,
        body["environment"],
        body["terms"],
        body["asset"],
        state,
        request.at,
        _who(request),
        body["needed"],
        body["summary"],
        decisions,
        request.hash,
        times,
        link,
    )
