"""What an approver sees before a release may go to an environment: short, readable, complete."""

from typing import Any

from ftaas_pipelines.evaluation import wording
from ftaas_pipelines.evaluation.cards import facts, page
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.evidence import release_problems
from ftaas_pipelines.governance.ledger import Entry, Ledger
from ftaas_pipelines.projects.policy import PlatformPolicy
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.store import Artifact, Store

CHECKED = "deployment_checked"
"""Ledger entry of a check on a deployment: {environment, check, passed, said}; subject: the release."""


def approval_summary(
    store: Store,
    ledger: Ledger,
    release: Artifact,
    project: Project,
    policy: PlatformPolicy,
    environment: str,
) -> dict[str, Any]:
    """The `summary` of an approval request: what the form shows and the ledger keeps.

    Scores are kept as numbers (`scores`, `thresholds`) and as people read them (`evaluation`,
    `threshold_results`, `against`). `staging` is None where the release does not run in staging.

    Raises:
        InputInvalid: something that the release is made of is not in the store.
    """
    model = facts.gather(store, ledger, release, project, policy)
    scores = model.scores
    assert scores is not None, "a release names its evaluation"
    brought = gates.submitted_by(ledger, project.name, model.splits.content["dataset"])
    training = gates.training_requirement(policy, project, model.splits.digest, brought)
    signed = gates.standing(ledger, training)
    return {
        "project": project.name,
        "title": project.title,
        "environment": environment,
        "digest": release.digest,
        "release": release.content,
        "headline": wording.headline(scores),
        "remarks": wording.remarks(scores),
        "scores": scores,
        "evaluation": facts.evaluation_rows(scores),
        "against": facts.wins(scores),
        "thresholds": policy.thresholds(project),
        "threshold_results": facts.thresholds(model),
        "problems": [p.what for p in release_problems(policy, project, scores)],
        "sign_offs": [_signed(e) for e in signed.decisions],
        "sign_offs_hold": signed.satisfied,
        "void_sign_offs": [f"{e.actor} as {e.body['role']}: {why}" for e, why in signed.void],
        "card": page.render(model),
        "staging": _staging(ledger, project.name, release.digest) if environment == "production" else None,
    }


def _signed(entry: Entry) -> dict[str, str]:
    body = entry.body
    return {
        "role": body["role"],
        "by": entry.actor,
        "at": entry.at,
        "decision": body["decision"],
        "comment": body["comment"],
        "conditions": body.get("conditions", ""),
    }


def _staging(ledger: Ledger, project: str, release: str) -> dict[str, str] | None:
    """What staging has shown of this release."""
    own = [
        e
        for e in ledger.entries(project=project, subject=release, authentic=True)
        if e.body.get("environment") == "staging"
    ]
    deployed = [e for e in own if e.kind in ("deployment", "rollback")]
    if not deployed:
        return None
    found = {"deployed": f"{deployed[-1].at} by {deployed[-1].actor}", "endpoint": deployed[-1].body["url"]}
    approved = [e for e in own if e.kind == "decision" and e.body["decision"] in gates.APPROVING]
    if approved:
        found["approved for staging"] = ", ".join(f"{e.actor} at {e.at}" for e in approved)
    checks = {e.body["check"]: e.body for e in own if e.kind == CHECKED}
    for name in ("smoke", "served_equals_evaluated"):
        body = checks.get(name)
        said = f"{'passed' if body['passed'] else 'FAILED'}: {body['said']}" if body else "not on record"
        found[wording.words(name)] = said
    flags = [e for e in own if e.kind in ("deployment_flagged", "deployment_unflagged", "deployment_stopped")]
    if flags and flags[-1].kind != "deployment_unflagged":
        found["WITHDRAWN"] = "; ".join(flags[-1].body["why"])
    return found
