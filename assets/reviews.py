"""Review requests (made by the line) and sign-offs (made by people, reported by a sensor)."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from assets import activity, reviewing
from assets.automation import carry_on
from assets.builder_types import Definition
from assets.data_line import row_review_awaited
from assets.line import Line, open_line
from assets.making import attempt
from assets.naming import common, key
from ftaas_pipelines import settings
from ftaas_pipelines.data.versions import diff
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.evaluation.cards.approval import approval_summary
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.requirement import ROLE_NAMES, Requirement, policy_version
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.review.rows import row_standing
from ftaas_pipelines.review.rows.row_standing import ASSET as ROW_REVIEW
from ftaas_pipelines.review.rows.row_standing import Progress
from ftaas_pipelines.review.sign_offs import requests
from ftaas_pipelines.store import Artifact

STILL_VALID = "still_valid"


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
        **common(loaded, ROW_REVIEW, "Opens the row review of what is new.", "person"),
        deps=[key(loaded, "dataset")],
        automation_condition=carry_on(),
    )
    def row_review_request(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        line = open_line(loaded.name, settings.load())
        with attempt(context, line, ROW_REVIEW):
            dataset = line.dataset
            if dataset is None:
                line.splits_spec()  # raises NotMade
            assert dataset is not None
            review = reviewing.row_review(line, reviewing.tool(line))
            head = line.store.head(loaded.name, "splits")
            splits = line.store.get(head["output"]) if head else None
            stands = review.open(dataset, line.dataset_inputs(), splits=splits)
        context.log.info(stands.says)
        return _requested(dataset.digest, _row_waiting(stands) or [stands.says])

    return row_review_request


def _row_waiting(stands: Progress) -> list[str]:
    rows = row_review_awaited(stands)
    return [f"{' or '.join(r['who'])}, since {r['since']}: {_link(r['link'])}" for r in rows]


def _dataset_review_request(loaded: Loaded) -> Definition:
    name = "dataset_review_request"

    @dg.asset(
        **common(loaded, name, "Opens the SME and RAI sign-offs of these splits.", "person"),
        deps=[key(loaded, "splits"), key(loaded, ROW_REVIEW)],
        automation_condition=carry_on(),
        output_required=False,
    )
    def dataset_review_request(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        line = open_line(loaded.name, settings.load())
        with attempt(context, line, name):
            requirement = line.training_requirement()
            stands = line.row_review
            if stands.done:
                assert line.splits is not None and line.dataset is not None
                _open(line, requirement, "dataset_sign_off", dataset_summary(line, line.splits, line.dataset))
        if not stands.done:  # green: red never means "waiting for Anna"
            activity.note(line.settings.home, loaded.name, name, "waiting", context.run_id)
            context.log.info(f"not asked yet: {stands.says}")
            return
        yield _requested(requirement.digest, _who(line, requirement, "dataset_sign_off"))

    return dataset_review_request


def dataset_summary(line: Line, splits: Artifact, dataset: Artifact) -> dict[str, Any]:
    """What who signs a dataset sees of it."""
    content = dataset.content
    rows = row_standing.rows_digest(line.dataset_inputs())
    return {
        "title": line.project.title,
        "counts": splits.content["counts"],
        "dropped": content["dropped"],
        "findings": content["findings"],
        "quality": content["quality"],
        "sources": [s.model_dump(exclude={"path", "http", "sql"}) for s in line.project.dataset.sources],
        "dataset": dataset.digest,
        "intended_use": line.project.intended_use,
        "not_for": line.project.not_for,
        "row_review": row_standing.evidence(line.ledger, line.review_terms, rows),
        "difference": _difference(line, dataset),
    }


def _difference(line: Line, dataset: Artifact) -> dict[str, Any] | None:
    """What is different from the version whose rows were reviewed last; None where none was."""
    last = row_standing.last_closed(line.ledger, line.review_terms)
    if last is None or not line.review_terms.limit:
        return None
    try:
        reviewed = line.store.get(last.entry.subject)
    except InputInvalid:  # taken by `store gc`
        return None
    counts = diff.compare(reviewed, dataset, limit=0).counts
    said = dataset.content["verdicts"]
    return {
        "from": last.entry.subject,
        "to": dataset.digest,
        "corrected": said["fix"],
        "rejected": said["reject"],
        "came": counts["came"],
        "went": max(0, counts["went"] - said["reject"]),
        "changed": counts["edited"] + max(0, counts["changed"] - said["fix"]),
    }


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
            where = (line.store, line.ledger, line.release, line.project, line.policy, environment)
            summary = approval_summary(*where)
            summary["report"] = str(line.evaluation.file("beside/report.html"))
            _open(line, requirement, f"approval_{environment}", summary)
        return _requested(requirement.digest, _who(line, requirement, f"approval_{environment}"))

    return approval_request


def _open(line: Line, requirement: Requirement, asset: str, summary: dict[str, Any]) -> None:
    labelling = reviewing.tool(line)
    with line.store.lease(f"reviews-{line.project.name}", line.settings.lease_wait_s):
        requests.open_requests(
            line.ledger,
            requirement,
            asset=asset,
            summary=summary,
            actor=line.actor,
            policy=policy_version(line.policy),
        )
    reviewing.put_before_people(line, labelling)


def _who(line: Line, requirement: Requirement, asset: str) -> list[str]:
    rows = gates.awaited(line.ledger, requirement, asset)
    return [
        f"{ROLE_NAMES[r['role']]}: {' or '.join(r['who'])}, since {r['since']}: {_link(r['link'])}"
        for r in rows
    ] or ["nobody: it is signed"]


def _link(link: str | None) -> str:
    return f"[{link}]({link})" if link and "://" in link else f"`{link}`"


def _requested(digest: str, waiting: list[str]) -> dg.MaterializeResult[Any]:
    return dg.MaterializeResult(
        data_version=dg.DataVersion(digest),
        metadata={"digest": digest, "waiting for": dg.MetadataValue.md("\n".join(f"- {w}" for w in waiting))},
    )


def _still_valid(loaded: Loaded, name: str, requirement_of: Any) -> dg.AssetChecksDefinition:
    # Not blocking: a changed dataset turns it red, and that must not fail the refresh run.
    @dg.asset_check(
        asset=key(loaded, name), name=STILL_VALID, description="The sign-off holds for the current content."
    )
    def still_valid() -> dg.AssetCheckResult:
        line = open_line(loaded.name, settings.load())
        found = validity(line, name, requirement_of(line))
        return dg.AssetCheckResult(
            passed=found.passed, severity=found.severity, description=found.description
        )

    return still_valid


def validity(line: Line, name: str, requirement: Requirement) -> dg.AssetCheckEvaluation:
    """Whether a sign-off holds: red where one was lost or refused, a warning while one is awaited."""
    found = gates.standing(line.ledger, requirement)
    said, lost = found.said, bool(found.void or found.refusals)
    if not found.satisfied:
        said = str(gates.refusal(requirement, found, gates.awaited(line.ledger, requirement, name), name))
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey([line.project.name, name]),
        check_name=STILL_VALID,
        passed=found.satisfied,
        severity=dg.AssetCheckSeverity.ERROR if lost else dg.AssetCheckSeverity.WARN,
        description=said,
    )
