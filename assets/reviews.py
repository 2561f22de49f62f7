"""Review requests (made by the line) and sign-offs (made by people, reported by a sensor)."""

from typing import Any

import dagster as dg

from assets.automation import carry_on
from assets.builder_types import Definition
from assets.line import Line, open_line
from assets.making import attempt
from assets.naming import common, key
from ftaas_pipelines import settings
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.gates import Requirement
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.review import requests


def define_dataset_reviews(loaded: Loaded) -> list[Definition]:
    return [
        _row_review_request(loaded),
        _dataset_review_request(loaded),
        dg.AssetSpec(
            **common(loaded, "dataset_sign_off", "SME and Responsible AI signed these splits.", "person"),
            deps=[key(loaded, "dataset_review_request")],
        ),
        _still_valid(loaded, "dataset_sign_off", lambda line: line.training_requirement()),
    ]


def define_approvals(loaded: Loaded) -> list[Definition]:
    found: list[Definition] = []
    for environment in loaded.project.serving.environments:
        found += [
            _approval_request(loaded, environment),
            dg.AssetSpec(
                **common(
                    loaded, f"approval_{environment}", f"The release may go to {environment}.", "person"
                ),
                deps=[key(loaded, f"approval_request_{environment}")],
            ),
            _still_valid(
                loaded, f"approval_{environment}", lambda line, e=environment: line.deployment_requirement(e)
            ),
        ]
    return found


def _row_review_request(loaded: Loaded) -> Definition:
    @dg.asset(
        **common(loaded, "row_review_request", "Opens the row review of what is new.", "person"),
        deps=[key(loaded, "dataset")],
        automation_condition=carry_on(),
    )
    def row_review_request(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        line = open_line(loaded.name, settings.load())
        with attempt(context, line, "row_review_request"):
            dataset = line.dataset
            if dataset is None:
                line.splits_spec()  # raises NotMade
            assert dataset is not None
            sample = line.project.reviews.row_sample
            asked = line.ledger.entries("row_review_requested", project=loaded.name, subject=dataset.digest)
            if sample and not asked:
                line.ledger.append(
                    "row_review_requested",
                    dataset.digest,
                    {"sample": min(sample, dataset.content["records"])},
                    project=loaded.name,
                    actor=line.actor,
                )
        return _requested(dataset.digest, [f"{sample} rows" if sample else "no row review is asked for"])

    return row_review_request


def _dataset_review_request(loaded: Loaded) -> Definition:
    @dg.asset(
        **common(
            loaded, "dataset_review_request", "Opens the SME and RAI sign-offs of these splits.", "person"
        ),
        deps=[key(loaded, "splits"), key(loaded, "row_review_request")],
        automation_condition=carry_on(),
    )
    def dataset_review_request(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        line = open_line(loaded.name, settings.load())
        with attempt(context, line, "dataset_review_request"):
            requirement = line.training_requirement()
            assert line.splits is not None and line.dataset is not None
            dataset = line.dataset.content
            summary = {
                "counts": line.splits.content["counts"],
                "dropped": dataset["dropped"],
                "findings": dataset["findings"],
                "quality": dataset["quality"],
                "sources": [s.model_dump(exclude={"path"}) for s in line.project.dataset.sources],
                "dataset": line.dataset.digest,
                "intended_use": line.project.intended_use,
                "not_for": line.project.not_for,
            }
            _open(line, requirement, "dataset_sign_off", summary)
        return _requested(requirement.digest, _who(line, requirement, "dataset_sign_off"))

    return dataset_review_request


def _approval_request(loaded: Loaded, environment: str) -> Definition:
    environments = loaded.project.serving.environments
    upstream = [key(loaded, "release")]
    if environment == "production" and "staging" in environments:
        upstream.append(key(loaded, "deployment_staging"))
    name = f"approval_request_{environment}"

    @dg.asset(
        **common(loaded, name, f"Opens the approval of the release for {environment}.", "person"),
        deps=upstream,
        automation_condition=carry_on(),
    )
    def approval_request(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        line = open_line(loaded.name, settings.load())
        with attempt(context, line, name):
            requirement = line.deployment_requirement(environment)
            assert line.release is not None and line.evaluation is not None
            staging = line.ledger.entries("deployment", project=loaded.name, subject=requirement.digest)
            summary = {
                "release": line.release.content,
                "scores": line.evaluation.content["scores"],
                "thresholds": requirement.thresholds,
                "staging": staging[-1].body if staging and environment == "production" else None,
                "report": str(line.evaluation.file("beside/report.html")),
            }
            _open(line, requirement, f"approval_{environment}", summary)
        return _requested(requirement.digest, _who(line, requirement, f"approval_{environment}"))

    return approval_request


def _open(line: Line, requirement: Requirement, asset: str, summary: dict[str, Any]) -> None:
    with line.store.lease(f"reviews-{line.project.name}", line.settings.lease_wait_s):
        requests.open_requests(line.ledger, requirement, asset=asset, summary=summary, actor=line.actor)


def _who(line: Line, requirement: Requirement, asset: str) -> list[str]:
    rows = gates.awaited(line.ledger, requirement, asset)
    return [f"{r['role']}: {' or '.join(r['who'])} ({r['link']})" for r in rows] or ["nobody: it is signed"]


def _requested(digest: str, waiting: list[str]) -> dg.MaterializeResult[Any]:
    return dg.MaterializeResult(
        data_version=dg.DataVersion(digest),
        metadata={"digest": digest, "waiting for": dg.MetadataValue.md("\n".join(f"- {w}" for w in waiting))},
    )


def _still_valid(loaded: Loaded, name: str, requirement_of: Any) -> dg.AssetChecksDefinition:
    # Not blocking: a changed dataset turns it red, and that must not fail the refresh run.
    @dg.asset_check(
        asset=key(loaded, name), name="still_valid", description="The sign-off holds for the current content."
    )
    def still_valid() -> dg.AssetCheckResult:
        line = open_line(loaded.name, settings.load())
        requirement = requirement_of(line)
        found = gates.standing(line.ledger, requirement)
        said = ", ".join(f"{e.actor} as {e.body['role']} at {e.at}" for e in found.decisions)
        if not found.satisfied:
            said = str(gates.refusal(requirement, found, gates.awaited(line.ledger, requirement, name), name))
        return dg.AssetCheckResult(
            passed=found.satisfied,
            severity=dg.AssetCheckSeverity.WARN,
            description=said or "by platform policy",
        )

    return still_valid
