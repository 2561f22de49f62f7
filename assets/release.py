"""`release`: names adapter, Bento and evidence; signed, in the ledger, registered in MLflow."""

from typing import Any

import dagster as dg

from assets import reviewing
from assets.automation import carry_on
from assets.bento import require_evidence
from assets.builder_types import Definition
from assets.line import Line, open_line
from assets.making import Made, attempt, result
from assets.naming import common, key
from ftaas_pipelines import settings
from ftaas_pipelines.errors import Refused
from ftaas_pipelines.governance import gates, signing
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.store import Artifact, short
from resources.tracking import Tracking


def define(loaded: Loaded) -> list[Definition]:
    @dg.asset(
        **common(loaded, "release", "What may be served: adapter, Bento and evidence, signed.", "mlflow"),
        deps=[key(loaded, "bento"), key(loaded, "evaluation")],
        automation_condition=carry_on(),
    )
    def release(context: dg.AssetExecutionContext, tracking: Tracking) -> dg.MaterializeResult[Any]:
        line = open_line(loaded.name, settings.load())
        with attempt(context, line, "release"):
            require_evidence(line, "release")
            reviewing.reread(line, line.training_requirement(), "release")
            line.require_row_review("release")
            gates.require(line.ledger, line.training_requirement(), asset="release", actor=line.actor)
            with line.store.lease(f"release-{loaded.name}", line.settings.lease_wait_s):
                artifact = _release(line)
                version = _register(line, artifact, tracking)
        return result(Made(artifact, None), **artifact.content, model_version=version)

    return [release]


def _release(line: Line) -> Artifact:
    content, digest = line.release_content(), line.release_digest()
    adapter = line.store.get(content["adapter"])
    if adapter.content["experiment"]:
        raise Refused(
            f"adapter {short(adapter.digest)} was made ungoverned",
            f"{line.project.name}/release",
            do="train it again through the gate with `ftaas run`",
        )
    for needed in (adapter, line.store.get(content["bento"]), line.store.get(content["evaluation"])):
        problems = list(needed.problems())
        if problems:
            raise Refused(problems)
    artifact = line.store.find(digest)
    if artifact is None:
        with line.store.create("release", digest) as draft:
            draft.content.update(content)
        artifact = draft.made
    line.store.set_head(line.project.name, "release", digest, content, artifact.digest)
    return artifact


def _register(line: Line, artifact: Artifact, tracking: Tracking) -> str:
    """Register in MLflow and in the ledger, each once: a run that died in between goes on here."""
    adapter = line.store.get(artifact.content["adapter"])
    tags = {k: str(artifact.content[k]) for k in ("adapter", "bento", "evaluation", "splits", "base")}
    version = tracking.register(line.settings.mlflow, line.project.name, artifact.digest, adapter.path, tags)
    if not line.ledger.entries("release", subject=artifact.digest, authentic=True):
        body = {
            **artifact.content,
            "model_version": version,
            "signature": signing.sign(line.settings.home, artifact.digest.encode()),
        }
        line.ledger.append("release", artifact.digest, body, project=line.project.name, actor=line.actor)
    return version
