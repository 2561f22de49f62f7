"""The runs that reviews call for: verdicts to apply, and questions that have to be asked again.

No change of content would start them. Each is asked for as long as it is due; Dagster takes each key once.
"""

import contextlib
from datetime import UTC, datetime

import dagster as dg

from assets import activity
from assets.activity import Activity
from assets.data_line import NotMade
from assets.line import Line
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.ledger import Entry
from ftaas_pipelines.governance.requirement import Requirement
from ftaas_pipelines.governance.standing import CLOCKS_DIFFER
from ftaas_pipelines.review.rows.row_standing import ASSET as ROW_REVIEW
from ftaas_pipelines.review.sign_offs import requests
from ftaas_pipelines.store import digest_of, short


def sign_offs(line: Line) -> list[tuple[str, Requirement]]:
    """The sign-offs that can be asked for already, and what each asks."""
    found: list[tuple[str, Requirement]] = []
    with contextlib.suppress(NotMade):
        found.append(("dataset_sign_off", line.training_requirement()))
        for environment in line.project.serving.environments:
            found.append((f"approval_{environment}", line.deployment_requirement(environment)))
    return found


def verdicts_to_apply(line: Line) -> list[dg.RunRequest]:
    """The dataset again, with the verdicts of a closed row review: version B. What follows carries on.

    Asked for as long as it is not made; Dagster takes each key once.
    """
    if not line.review_terms.limit:
        return []
    stands = line.row_review
    if stands.state != "closed" or line.dataset is not None:
        return []
    return [
        dg.RunRequest(
            run_key=f"verdicts of {stands.round} at {stands.since}",
            asset_selection=[dg.AssetKey([line.project.name, "dataset"])],
            tags={"ftaas/project": line.project.name, "ftaas/why": f"row review {stands.round} is closed"},
        )
    ]


def questions_to_ask(line: Line, out: str) -> list[dg.RunRequest]:
    """The request assets that no change of content would start, though they have something to ask.

    Those whose sign-off was asked for and no longer holds: once for what became void. Those that failed, and
    whose question stands nevertheless: once. And a row review that failed while the tool was out of reach.

    Args:
        out: when the tool was out of reach last (ISO 8601, UTC).
    """
    found: list[dg.RunRequest] = []
    for _, requirement in sign_offs(line):
        environment = requirement.environment
        request = f"approval_request_{environment}" if environment else "dataset_review_request"
        if not environment and not line.row_review.done:
            continue
        asked = _asked(line, requirement)  # the line asks for the first time by itself
        if asked and (why := _void_since(line, requirement, asked) or _failed(line, request, asked)):
            found.append(_run(line, request, f"of {short(requirement.digest)}: {why}"))
    if line.review_terms.limit and line.dataset is not None and line.row_review.state == "missing":
        last = _last_failure(line, ROW_REVIEW)
        if last and last.at <= out:
            why = f"failed in run {last.run_id} while the labelling tool was out of reach"
            found.append(_run(line, ROW_REVIEW, why))
    return found


def _asked(line: Line, requirement: Requirement) -> list[Entry]:
    """When people were asked for this sign-off, and where."""
    kinds = ("review_requested", "round_opened")
    about = line.ledger.entries(kinds, project=line.project.name, subject=requirement.digest, authentic=True)
    requested = [e for e in about if e.kind == kinds[0] and e.body["environment"] == requirement.environment]
    known = {e.hash for e in requested}
    return [e for e in about if e.hash in known or e.body.get("about", {}).get("request") in known]


def _void_since(line: Line, requirement: Requirement, asked: list[Entry]) -> str:
    """Why people have to be asked again: other words for other evidence; empty when they have not."""
    found = gates.standing(line.ledger, requirement)
    soon = datetime.now(UTC) + CLOCKS_DIFFER
    if any(datetime.fromisoformat(e.at) > soon for e, _ in found.void):
        return ""  # a clock is wrong: another answer would be dated so too
    roles = requests.unasked(line.ledger, requirement)
    void = [requirement.terms, sorted(e.hash for e, _ in found.void)]
    evidence = digest_of([asked[-1].hash, *void, {role: requirement.able(role) for role in roles}])
    return f"asked again, {short(evidence)}" if roles else ""


def _failed(line: Line, asset: str, asked: list[Entry]) -> str:
    """The question was asked, and where it could not be carried out at once, it is by now."""
    failure = _last_failure(line, asset)
    return f"failed, and stands, {short(digest_of([e.hash for e in asked]))}" if failure else ""


def _last_failure(line: Line, asset: str) -> Activity | None:
    """The last try, when it failed for a reason that may have passed: no refusal, no wrong input."""
    last = activity.read(line.settings.home, line.project.name, asset)
    return last if last and (last.state, last.exit_code) == ("failed", 1) else None


def _run(line: Line, asset: str, why: str) -> dg.RunRequest:
    """Dagster takes each reason once."""
    return dg.RunRequest(
        run_key=f"{line.project.name}/{asset} {why}",
        asset_selection=[dg.AssetKey([line.project.name, asset])],
        tags={"ftaas/project": line.project.name, "ftaas/why": why},
    )
