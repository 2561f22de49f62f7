"""How each asset of a line stands, and why: what `ftaas status` prints and `ftaas run` acts on."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from assets import activity
from assets.data_line import NotMade, row_review_awaited
from assets.line import Line, asset_names
from ftaas_pipelines.errors import InputInvalid, Refused
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.evidence import release_problems
from ftaas_pipelines.governance.gates import Requirement
from ftaas_pipelines.review.rows.row_standing import ASSET as ROW_REVIEW
from ftaas_pipelines.review.sign_offs import requests
from ftaas_pipelines.store import Artifact, short

State = Literal["missing", "fresh", "stale", "running", "waiting", "refused", "failed", "pinned"]


@dataclass(frozen=True)
class AssetState:
    """One line of `ftaas status`. `waiting` says for whom, when the state is waiting."""

    name: str
    state: State
    digest: str | None = None
    reason: str = ""
    updated_at: str | None = None
    waiting: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def line_states(line: Line) -> list[AssetState]:
    """The state of every asset, in the order of the line.

    Raises:
        InputInvalid: the data or the base model cannot be read.
    """
    return [_state(line, name) for name in asset_names(line.loaded)]


def _state(line: Line, name: str) -> AssetState:
    state = _content_state(line, name)
    last = activity.read(line.settings.home, line.project.name, name)
    if last is None or state.state in ("fresh", "pinned", "waiting", "refused"):
        return state
    if last.state == "running":
        return AssetState(name, "running", state.digest, f"run {last.run_id[:8]} since {last.at}", last.at)
    if last.state == "failed" and last.input in ("", _input_digest(line, name)):
        return AssetState(name, "failed", state.digest, last.error, last.at)
    return state


def _content_state(line: Line, name: str) -> AssetState:
    try:
        if name.startswith("source_"):
            return _source(line, name)
        if name == ROW_REVIEW:
            return _row_review(line)
        if name == "dataset_review_request":
            if not line.row_review.done:
                return _behind(line, name, f"the row review comes first: {line.row_review.says}")
            return _request(line, name, line.training_requirement())
        if name == "dataset_sign_off":
            return _sign_off(line, name, line.training_requirement(), "dataset_review_request")
        for environment in line.project.serving.environments:
            if name == f"approval_request_{environment}":
                return _request(line, name, line.deployment_requirement(environment))
            if name == f"approval_{environment}":
                return _sign_off(
                    line, name, line.deployment_requirement(environment), f"approval_request_{environment}"
                )
            if name == f"deployment_{environment}":
                return _deployment(line, name, environment)
        return _artifact(line, name)
    except NotMade as error:
        return _behind(line, name, f"{error.needs} is not made for the current content")


def _source(line: Line, name: str) -> AssetState:
    digest = line.source_digests[name.removeprefix("source_")]
    return AssetState(name, "fresh", digest, "observed")


def _row_review(line: Line) -> AssetState:
    dataset = line.dataset
    if dataset is None:
        raise NotMade(line.project.name, ROW_REVIEW, "dataset")
    found = line.row_review
    if found.done:
        return AssetState(ROW_REVIEW, "fresh", dataset.digest, found.says, found.since or None)
    if found.state == "missing":
        return _behind(line, ROW_REVIEW, found.says)
    waiting = row_review_awaited(found)
    return AssetState(ROW_REVIEW, "waiting", dataset.digest, found.says, found.since, waiting)


def _request(line: Line, name: str, requirement: Requirement) -> AssetState:
    asked = [role for role, needed in requirement.roles.items() if needed]
    if not asked:
        return AssetState(name, "fresh", requirement.digest, "nobody is asked: passes by platform policy")
    if requests.unasked(line.ledger, requirement):
        return _behind(line, name, f"{short(requirement.digest)} is not put before its reviewers yet")
    known = requests.reviews(line.ledger, project=line.project.name, only_open=False)
    own = [r.since for r in known if r.terms == requirement.terms and r.role in asked]
    return AssetState(name, "fresh", requirement.digest, "", max(own))


def _sign_off(line: Line, name: str, requirement: Requirement, request: str) -> AssetState:
    found = gates.standing(line.ledger, requirement)
    if found.satisfied:
        at = max((e.at for e in found.decisions), default=None)
        why = found.said
        return AssetState(name, "fresh", requirement.digest, why, at)
    waiting = gates.awaited(line.ledger, requirement, name)
    refusal = gates.refusal(requirement, found, waiting, name)
    if found.refusals:
        return AssetState(
            name, "refused", requirement.digest, str(refusal.problems[0]), found.refusals[-1].at
        )
    if len(found.requests) < len(found.missing):
        return _behind(line, name, f"{request} is behind: {refusal.problems[0].what}")
    since = max(r["since"] for r in waiting)
    return AssetState(name, "waiting", requirement.digest, str(refusal.problems[0]), since, waiting)


def _deployment(line: Line, name: str, environment: str) -> AssetState:
    current = line.deployed(environment)
    if current and current.pinned:
        undo = f"`ftaas deployment unpin {line.project.name} --env {environment}`"
        return AssetState(
            name, "pinned", current.release, f"pinned to release {short(current.release)}: {undo}"
        )
    requirement = line.deployment_requirement(environment)
    found = gates.standing(line.ledger, requirement)
    if not found.satisfied:
        waiting = gates.awaited(line.ledger, requirement, name)
        state: State = "refused" if found.refusals else "waiting"
        refusal = gates.refusal(requirement, found, waiting, name)
        return AssetState(
            name, state, current.release if current else None, str(refusal.problems[0]), None, waiting
        )
    deployed = line.ledger.entries(
        "deployment", project=line.project.name, subject=requirement.digest, authentic=True
    )
    done = [e for e in deployed if e.body["environment"] == environment]
    if current and (current.release, current.state) == (requirement.digest, "running") and done:
        return AssetState(name, "fresh", requirement.digest, current.url, done[-1].at)
    if current is None:
        return AssetState(name, "missing", None, "not running")
    why = f"serves {short(current.release)} ({current.state}), not {short(requirement.digest)}"
    return AssetState(name, "stale", current.release, why)


def _artifact(line: Line, name: str) -> AssetState:
    artifact = made(line, name)
    if artifact is not None:
        return AssetState(name, "fresh", artifact.digest, "", artifact.attestation["made_at"])
    if name.startswith("adapter_"):
        # Only what stands before the gate waits; once signed, it is simply not trained yet.
        requirement = line.training_requirement()
        found = gates.standing(line.ledger, requirement)
        if not found.satisfied:
            waiting = gates.awaited(line.ledger, requirement, name)
            refusal = gates.refusal(requirement, found, waiting, name)
            state: State = "refused" if found.refusals else "waiting"
            return AssetState(name, state, None, str(refusal.problems[0]), None, waiting)
    if name in ("bento", "release") and line.evaluation is not None:
        scores = line.evaluation.content["scores"]
        problems = release_problems(line.policy, line.project, scores)
        if problems:
            return AssetState(name, "refused", None, "; ".join(str(p) for p in problems))
    _input_of(line, name)  # raises NotMade when upstream is behind
    return _behind(line, name, "")


def made(line: Line, name: str) -> Artifact | None:
    """The artifact of an asset for the current content, or None."""
    if name.startswith("adapter_"):
        return line.adapter(line.project.recipe(name.removeprefix("adapter_")))
    return getattr(line, name)


def _input_of(line: Line, name: str) -> tuple[str, dict[str, Any]] | None:
    """Input digest and inputs of an asset that makes an artifact; None for the others."""
    spec = line.spec_of(name)
    if spec is not None:
        return spec.input_digest, spec.inputs
    if name == "candidate":
        return line.candidate_digest(), line.comparison_spec().inputs
    if name == "release":
        return line.release_digest(), line.release_content()
    return None


def _input_digest(line: Line, name: str) -> str:
    try:
        found = _input_of(line, name)
    except (NotMade, Refused, InputInvalid):
        return ""
    return found[0] if found else ""


def _behind(line: Line, name: str, why: str) -> AssetState:
    """Missing, or stale with what changed since it was last made."""
    head = line.store.head(line.project.name, name)
    if head is None:
        return AssetState(name, "missing", None, why or "never made")
    if not why:
        found = _input_of(line, name)
        changes = changed(head["inputs"], found[1]) if found else []
        why = f"changed since: {', '.join(changes)}" if changes else "its artifact is gone from the store"
    return AssetState(name, "stale", head["output"], why, head["at"])


def changed(before: Any, after: Any, place: str = "") -> list[str]:
    """The places where two inputs differ, in words: `sources.reports.sha256`."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(set(before) | set(after))
        return [c for k in keys for c in changed(before.get(k), after.get(k), f"{place}.{k}" if place else k)]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        names = [b.get("name", str(i)) if isinstance(b, dict) else str(i) for i, b in enumerate(before)]
        return [
            c for n, b, a in zip(names, before, after, strict=True) for c in changed(b, a, f"{place}.{n}")
        ]
    return [] if before == after else [place]


def waiting_for(states: list[AssetState]) -> list[dict[str, Any]]:
    """The `waiting` list of `ftaas run --json`: each awaited role once."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for state in states:
        for row in state.waiting:
            if state.name.startswith((ROW_REVIEW, "dataset_sign_off", "approval_")):
                rows[(row["asset"], row["role"])] = row
    return list(rows.values())
