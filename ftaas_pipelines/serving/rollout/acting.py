"""What a rule says is done, by the functions that the commands call; each act stands in the ledger.

rollout_decided   before it is done: action, rule, what was measured, which releases
rollback, deployment, trial_ended, champion   once it is done, as a command writes them; `decided` names it
rollout_refused   where the gate says no, or the release cannot answer: said once

Nothing is done that cannot be written down before. Who is killed in between finds what was decided, and
writes down that it was done.
"""

from pathlib import Path
from typing import Any

from ftaas_pipelines.errors import FtaasError, Refused
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.gates import Requirement
from ftaas_pipelines.governance.ledger import Entry, Ledger, New
from ftaas_pipelines.governance.requirement import policy_version
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.serving import deployments, verified
from ftaas_pipelines.serving.desired import ReleaseToServe, Wanted
from ftaas_pipelines.serving.rollout.judging import Verdict
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import Store, short

ACTOR = "ftaas-rollout"
DECIDED, REFUSED = "rollout_decided", "rollout_refused"
_WAIT_S = 180.0


def act(settings: Settings, environment: str, ledger: Ledger, judged: Wanted, verdict: Verdict) -> Entry:
    """Do what a verdict says, unless somebody changed what was judged; returns what was decided.

    `finish` writes down that it was done.

    Raises:
        Refused: the gate says no, or it was changed since; nothing was done.
        FtaasError: the ledger cannot be written (nothing was done), somebody deploys it just now, or the
            release does not answer (what served before still does).
    """
    project = judged.release.project
    with Store(settings.store_path).lease(lease(environment, project), wait_s=0):
        target = _target(judged, verdict)
        if verdict.action == "promote":
            require_leave(settings, ledger, target, environment)
        elif verdict.action == "rollback":
            _require_approved(ledger, target, environment)
        url = deployments.deployment(settings, environment, project).url
        body = decision(environment, verdict, judged, url)
        decided = ledger.append(DECIDED, verdict.subject, body, project=project, actor=ACTOR)
        if verdict.action == "end_trial":
            deployments.end_trial(settings, environment, project, judged)
        elif verdict.action == "rollback":
            deployments.rollback(settings, environment, project, _WAIT_S, judged)
        else:
            deployments.up(settings, environment, target, _WAIT_S, judged=judged)
    return decided


def lease(environment: str, project: str) -> str:
    """The lease that whoever deploys holds."""
    return f"deploy-{environment}-{project}"


def decision(environment: str, verdict: Verdict, judged: Wanted, url: str = "") -> dict[str, Any]:
    """What is written down of a verdict that is acted on."""
    target, trial = _target(judged, verdict), judged.trial
    return {
        "environment": environment,
        "action": verdict.action,
        "rule": verdict.rule,
        "reason": verdict.reason,
        "findings": [finding.as_dict() for finding in verdict.findings],
        "serving": judged.release.release,
        "other": verdict.other,
        "since": trial.since if trial and verdict.rule != "rollback_when" else judged.since,
        "then": {"release": target.release, "adapter": target.adapter, "url": url},
        "trial": {"release": trial.release.release, "kind": trial.kind} if trial else None,
    }


def finish(ledger: Ledger, decided: Entry, stands: Wanted | None) -> str:
    """Write down, as a command does, that what was decided is done; returns that in words.

    Nothing is written, and nothing said, where it is not done, or stands there already.

    Raises:
        FtaasError: the ledger cannot be written.
    """
    body, environment = decided.body, decided.environment
    target, action = body["then"], body["action"]
    if stands is None or stands.trial or stands.release.release != target["release"]:
        return ""
    if action == "rollback" and not stands.pinned:
        return ""
    kinds = ("deployment", "rollback", "trial_ended")
    later = ledger.entries(kinds, project=decided.project, after=decided.seq, authentic=True)
    if any(e.environment == environment for e in later):
        return ""
    by = {"environment": environment, "decided": decided.hash}
    new: list[New] = []

    def add(kind: str, subject: str, body: dict[str, Any]) -> None:
        new.append(New(kind, subject, body, decided.project, ACTOR))

    if action != "end_trial":
        facts = {"adapter": target["adapter"], "url": target["url"]}
        add("rollback" if action == "rollback" else "deployment", target["release"], {**by, **facts})
    if tried := body["trial"]:
        promoted = {"promoted": True} if action == "promote" else {}
        add("trial_ended", tried["release"], {**by, "kind": tried["kind"], **promoted})
    if environment == "production" and action != "end_trial":
        add("champion", target["release"], {"adapter": target["adapter"]})
    ledger.append_many(new)
    done = {"end_trial": "ended the trial; serves", "promote": "serves", "rollback": "went back, pinned, to"}
    return f"{done[action]} {short(target['release'])}: {body['reason']}"


def unfinished(ledger: Ledger, environment: str, project: str) -> Entry | None:
    """What was decided last there: `finish` sees whether it was written down."""
    found = ledger.entries(DECIDED, project=project, limit=20, authentic=True)
    return next((e for e in reversed(found) if e.environment == environment), None)


def require_leave(settings: Settings, ledger: Ledger, release: ReleaseToServe, environment: str) -> None:
    """Leave to serve a release that was tried: the gate's, asked anew; a grant says so.

    Raises:
        Refused: its approval, or the sign-off behind it, holds no more; or the policy is not the one under
            which it was let in, which a person must look at.
    """
    grant = _require_approved(ledger, release, environment)
    if grant.policy and grant.policy != current_policy(settings.policy):
        raise Refused(
            f"the platform policy changed since release {short(release.release)} was let in",
            f"{environment}/{release.project}",
            do=f"`ftaas deployment promote {release.project} --env {environment}`",
        )
    requirement = Requirement(**grant.body["requirement"])
    gates.require(ledger, requirement, asset=f"deployment_{environment}", actor=ACTOR)


def _require_approved(ledger: Ledger, release: ReleaseToServe, environment: str) -> Entry:
    """The newest grant of a release there, if all that stands behind it holds.

    Raises:
        Refused: it does not.
    """
    where = f"{environment}/{release.project}"
    if why := verified.problem(ledger, release, environment):
        raise Refused(why, where, do="have it approved again, or deploy another")
    entries = ledger.entries(project=release.project, subject=release.release, authentic=True)
    own = [e for e in entries if e.body.get("environment") == environment]
    flags = [e for e in own if e.kind in ("deployment_flagged", "deployment_unflagged")]
    if flags and flags[-1].kind == "deployment_flagged":
        raise Refused("; ".join(flags[-1].body["why"]), where, do="have it signed again")
    splits = next((e.body.get("splits") for e in reversed(entries) if e.kind == "release"), None)
    trained = (
        ledger.entries("grant", project=release.project, subject=splits, authentic=True) if splits else []
    )
    if trained:
        requirement = Requirement(**trained[-1].body["requirement"])
        found = gates.standing(ledger, requirement)
        if not found.satisfied:
            raise gates.refusal(requirement, found, gates.awaited(ledger, requirement, "train"), "train")
    return [e for e in own if e.kind == "grant" and e.body["gate"] == "deploy"][-1]


def refused_before(ledger: Ledger, environment: str, verdict: Verdict, judged: Wanted) -> str:
    """Why this very act was refused, where nothing was written about the project since; else empty."""
    project = judged.release.project
    body = decision(environment, verdict, judged)
    bound = ("environment", "action", "since", "serving")
    refusals = ledger.entries(REFUSED, project=project, limit=20, authentic=True)
    mine = [e for e in refusals if e.subject == verdict.subject and all(e.body[k] == body[k] for k in bound)]
    if not mine:
        return ""
    later = ledger.entries(project=project, after=mine[-1].seq)
    said = all(e.kind in (REFUSED, DECIDED) for e in later)
    return str(mine[-1].body["why"]) if said else ""


def note_refusal(ledger: Ledger, environment: str, verdict: Verdict, judged: Wanted, why: FtaasError) -> None:
    """Write down that a verdict is not carried out.

    Raises:
        FtaasError: the ledger cannot be written.
    """
    body = {**decision(environment, verdict, judged), "why": str(why)}
    ledger.append(REFUSED, verdict.subject, body, project=judged.release.project, actor=ACTOR)


def current_policy(path: Path) -> str:
    """The version of the platform policy; empty where there is none.

    Raises:
        InputInvalid: it is wrong.
    """
    return policy_version(load_policy(path)) if path.exists() else ""


def _target(judged: Wanted, verdict: Verdict) -> ReleaseToServe:
    """The release that serves afterwards."""
    if verdict.action == "promote" and judged.trial:
        return judged.trial.release
    return judged.history[-1] if verdict.action == "rollback" else judged.release
