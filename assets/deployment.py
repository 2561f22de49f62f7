"""`deployment_<env>`: a release that runs, is healthy and answers as it was evaluated."""

import json
from typing import Any, Literal

import dagster as dg

from assets import activity
from assets.automation import when_signed
from assets.builder_types import Definition
from assets.line import Line, open_line
from assets.making import attempt, table
from assets.naming import common, key
from assets.withdrawal import STOPPED, require_serving, withdrawn
from ftaas_pipelines import settings
from ftaas_pipelines.evaluation.cards.approval import CHECKED
from ftaas_pipelines.governance import gates
from ftaas_pipelines.inference import pictures
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.serving import asking, deployments
from ftaas_pipelines.serving.deployments import Deployment
from ftaas_pipelines.serving.desired import Terms, Trial
from ftaas_pipelines.serving.smoke import Question
from ftaas_pipelines.store import Artifact
from resources.tracking import Tracking

HEALTHY_WITHIN_S = 180


def define(loaded: Loaded) -> list[Definition]:
    return [
        d
        for environment in loaded.project.serving.environments
        for d in (_deployment(loaded, environment), *_checks(loaded, environment))
    ]


def _deployment(loaded: Loaded, environment: str) -> Definition:
    name = f"deployment_{environment}"
    approval = key(loaded, f"approval_{environment}")

    @dg.asset(
        **common(loaded, name, f"The release that answers in {environment}.", "bentoml"),
        deps=[key(loaded, "release"), key(loaded, f"approval_request_{environment}"), approval],
        automation_condition=when_signed(approval),
        check_specs=[
            dg.AssetCheckSpec(
                "human_sign_off",
                asset=key(loaded, name),
                description="Approved for this environment.",
            )
        ],
        output_required=False,
    )
    def deployment(context: dg.AssetExecutionContext, tracking: Tracking):
        line = open_line(loaded.name, settings.load())
        asset_key = key(loaded, name)
        with attempt(context, line, name, more=True):
            requirement = line.deployment_requirement(environment)
        found = gates.standing(line.ledger, requirement)
        with_release = key(loaded, "release") in context.job_def.asset_layer.selected_asset_keys
        if not found.satisfied and not found.refusals and with_release:
            waiting = gates.awaited(line.ledger, requirement, name)
            said = str(gates.refusal(requirement, found, waiting, name))
            yield dg.AssetCheckResult(
                passed=False,
                check_name="human_sign_off",
                asset_key=asset_key,
                severity=dg.AssetCheckSeverity.WARN,
                description=said,
            )
            activity.note(line.settings.home, loaded.name, name, "waiting", context.run_id)
            context.log.info(said)
            return
        with attempt(context, line, name, requirement.digest):
            grant = gates.require(line.ledger, requirement, asset=name, actor=line.actor)
            assert line.release is not None
            with line.store.lease(f"deploy-{environment}-{loaded.name}", line.settings.lease_wait_s):
                served = deploy(line, environment, line.release, tracking)
        url = served.url
        yield dg.MaterializeResult(
            asset_key=asset_key,
            data_version=dg.DataVersion(line.release.digest),
            metadata={
                "release": line.release.digest,
                "endpoint": dg.MetadataValue.url(f"{url}/v1"),
                "swagger": dg.MetadataValue.url(f"{url}/docs"),
            },
        )
        yield dg.AssetCheckResult(
            passed=True,
            check_name="human_sign_off",
            asset_key=asset_key,
            metadata=grant.as_dict(),
            description=gates.standing(line.ledger, requirement).said,
        )

    return deployment


def deploy(line: Line, environment: str, release: Artifact, tracking: Tracking) -> Deployment:
    """Serve a release: bring it up, record it, and in production make it champion.

    Repeating it is harmless: what already serves stays, what is already recorded is not recorded again.

    Raises:
        Refused: a sign-off behind it holds no more, or the environment is pinned to another release.
        FtaasError: it did not become healthy; what answered before still does.
    """
    project, ledger = line.project.name, line.ledger
    content = release.content
    require_serving(line, release.digest, environment)
    wanted = deployments.release_to_serve(
        line.settings,
        project,
        release.digest,
        line.store.get(content["bento"]),
        str(line.base_path),
        line.project.serving.max_new_tokens,
        line.project.serving.upstream,
    )
    serving = line.project.serving
    terms = Terms(guard=line.policy.guard_of(line.project), answers=serving.answers, rollout=serving.rollout)
    served = deployments.up(
        line.settings, environment, wanted, HEALTHY_WITHIN_S, terms, questions=questions_of(line, release)
    )
    entries = ledger.entries(("deployment", STOPPED), project=project, authentic=True)
    said = [e for e in entries if e.body["environment"] == environment]
    if not said or said[-1].kind == STOPPED or said[-1].subject != release.digest:
        body = {"environment": environment, "url": served.url, "adapter": content["adapter"]}
        ledger.append("deployment", release.digest, body, project=project, actor=line.actor)
    if environment == "production":
        make_champion(line, release, tracking)
    return served


def try_release(
    line: Line, environment: str, release: Artifact, kind: Literal["canary", "ab", "shadow"], percent: float
) -> dict[str, Any]:
    """Try an approved release beside the one that serves, and record that.

    Raises:
        Refused: a sign-off behind it holds no more, or it serves already.
        FtaasError: it cannot be served.
    """
    require_serving(line, release.digest, environment)
    served = deployments.release_to_serve(
        line.settings,
        line.project.name,
        release.digest,
        line.store.get(release.content["bento"]),
        str(line.base_path),
        line.project.serving.max_new_tokens,
        line.project.serving.upstream,
    )
    trial = Trial(release=served, kind=kind, percent=percent, rollout=line.project.serving.rollout)
    found = deployments.try_beside(
        line.settings, environment, trial, HEALTHY_WITHIN_S, questions_of(line, release)
    )
    body = {"environment": environment, "kind": kind, "percent": percent}
    line.ledger.append("trial_started", release.digest, body, project=line.project.name, actor=line.actor)
    return found


def end_trial(line: Line, environment: str) -> Trial | None:
    """Go on with the release that serves alone, and record that. Returns what was tried."""
    ended = deployments.end_trial(line.settings, environment, line.project.name)
    if ended:
        body = {"environment": environment, "kind": ended.kind}
        subject, project = ended.release.release, line.project.name
        line.ledger.append("trial_ended", subject, body, project=project, actor=line.actor)
    return ended


def make_champion(line: Line, release: Artifact, tracking: Tracking) -> None:
    """Move the champion to a release that is healthy in production."""
    entries = line.ledger.entries("champion", project=line.project.name, authentic=True)
    if not entries or entries[-1].subject != release.digest:
        line.ledger.append(
            "champion",
            release.digest,
            {"adapter": release.content["adapter"]},
            project=line.project.name,
            actor=line.actor,
        )
    tracking.champion(line.settings.mlflow, line.project.name, release.digest)


def _checks(loaded: Loaded, environment: str) -> list[dg.AssetChecksDefinition]:
    asset = key(loaded, f"deployment_{environment}")

    # Blocking: production's approver is asked when staging has answered, and sees how.
    @dg.asset_check(asset=asset, name="smoke", description="It answers.", blocking=True)
    def smoke() -> dg.AssetCheckResult:
        line = open_line(loaded.name, settings.load())
        [question] = _test_rows(line, _evaluation(line), 1)
        answer = asking.ask(line.settings, environment, loaded.name, question["messages"])
        said = f"answered in {answer['latency_ms']:.0f} ms"
        passed = bool(answer["answer"].strip())
        _record(line, environment, answer["release"], "smoke", passed, said)
        return dg.AssetCheckResult(
            passed=passed,
            description=said,
            metadata={
                "question": question["prompt"],
                "answer": answer["answer"],
                "response_id": answer["response_id"],
            },
        )

    @dg.asset_check(
        asset=asset,
        name="served_equals_evaluated",
        description="Test questions get the very answers they got in the evaluation.",
        blocking=True,
    )
    def served_equals_evaluated() -> dg.AssetCheckResult:
        line = open_line(loaded.name, settings.load())
        rows = compare_served(line, environment)
        equal, upstream = sum(r["same"] for r in rows), line.project.serving.upstream is not None
        # What another server computes with is not ours to say: it is told, and its approver weighs it.
        severity = dg.AssetCheckSeverity.WARN if upstream else dg.AssetCheckSeverity.ERROR
        how = "as texts, by another server" if upstream else "token for token"
        said = f"{equal} of {len(rows)} answers are the same, {how}"
        served = line.deployed(environment)
        if served:
            _record(line, environment, served.release, "served_equals_evaluated", equal == len(rows), said)
        return dg.AssetCheckResult(
            passed=equal == len(rows),
            severity=severity,
            description=said,
            metadata={"answers": table(rows, ["same", "prompt", "evaluated", "served"])},
        )

    # Not blocking: it speaks of what serves, not of this run. The sensor `withdrawal` tells it between runs.
    @dg.asset_check(asset=asset, name="still_valid", description="The sign-offs behind what serves hold.")
    def still_valid() -> dg.AssetCheckResult:
        line = open_line(loaded.name, settings.load())
        served = line.deployed(environment)
        why = withdrawn(line, served.release, environment) if served else []
        said = "; ".join(why) or ("every sign-off holds" if served else "nothing serves")
        return dg.AssetCheckResult(passed=not why, description=said)

    return [smoke, served_equals_evaluated, still_valid]


def _record(line: Line, environment: str, release: str, check: str, passed: bool, said: str) -> None:
    """Keep what a check saw, once for each deployment: staging's is evidence for production's approver."""
    entries = line.ledger.entries((CHECKED, "deployment"), project=line.project.name, subject=release)
    own = [e for e in entries if e.body["environment"] == environment]
    known = [e for e in own if e.kind == "deployment" or e.body["check"] == check]
    if known and known[-1].kind == CHECKED and known[-1].body["passed"] == passed:
        return
    body = {"environment": environment, "check": check, "passed": passed, "said": said}
    line.ledger.append(CHECKED, release, body, project=line.project.name, actor="platform")


def questions_of(line: Line, release: Artifact) -> list[Question]:
    """What a release is asked before it answers anybody: test prompts, and what its evaluation saw."""
    evaluation = line.store.get(release.content["evaluation"])
    return [
        Question(
            messages=row["messages"],
            max_tokens=max(1, len(row["token_ids"]["candidate"])),
            token_ids=row["token_ids"]["candidate"],
        )
        for row in _test_rows(line, evaluation, line.project.serving.smoke_questions)
    ]


def compare_served(line: Line, environment: str) -> list[dict[str, Any]]:
    """Ask the endpoint test questions; the answers beside those of the evaluation."""
    found: list[dict[str, Any]] = []
    for row in _test_rows(line, _evaluation(line), line.project.serving.smoke_questions):
        asked = asking.ask(
            line.settings,
            environment,
            line.project.name,
            row["messages"],
            max_tokens=line.project.evaluation.max_new_tokens,
        )
        found.append(
            {
                "prompt": row["prompt"],
                "evaluated": row["answers"]["candidate"],
                "served": asked["answer"],
                "same": row["token_ids"]["candidate"] == asked["token_ids"]
                if asked["token_ids"] is not None  # another server tells no tokens
                else row["answers"]["candidate"] == asked["answer"],
            }
        )
    return found


def _evaluation(line: Line) -> Artifact:
    if line.evaluation is None:
        raise dg.Failure("the evaluation is not made for the current content", allow_retries=False)
    return line.evaluation


def _test_rows(line: Line, evaluation: Artifact, count: int) -> list[dict[str, Any]]:
    """Test questions with the answers they got, as an endpoint is asked them."""
    with evaluation.file("answers.jsonl").open(encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["set"] == "test"][:count]
    if line.family != "vision":
        return rows
    splits = line.store.get(evaluation.content["splits"])
    dataset = line.store.get(splits.content["dataset"]).path
    return [{**row, "messages": pictures.inline(row["messages"], dataset)} for row in rows]
