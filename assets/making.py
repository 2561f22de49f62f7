"""How an asset's body makes an artifact: under a lease, once, with its activity on record."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg

from assets import activity
from assets.data_line import anchors_pin
from assets.line import Line
from ftaas_pipelines.data.inputs import SplitsInputs
from ftaas_pipelines.errors import FtaasError, InputInvalid, Interrupted, Refused
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Artifact, short
from resources.launch_contract import StageResult
from resources.launcher import SubprocessLauncher
from resources.tracking import TrackedRun, Tracking


@dataclass(frozen=True)
class Made:
    """An artifact and how it came to be there."""

    artifact: Artifact
    result: StageResult | None

    @property
    def reused(self) -> bool:
        return self.result is None or self.result.reused


@contextlib.contextmanager
def attempt(
    context: dg.AssetExecutionContext, line: Line, asset: str, input_digest: str = "", more: bool = False
) -> Iterator[None]:
    """Record that an asset is being made, and how that ends; the platform's errors become Dagster's.

    Where `more` is to come before the asset is made, a good end is not recorded as its own.
    A refusal or a wrong input is never retried. Everything else is the run's retry policy's to judge.
    """
    home, project, run_id = line.settings.home, line.project.name, context.run_id
    activity.note(home, project, asset, "running", run_id, input_digest)
    try:
        yield
    except FtaasError as error:
        activity.note(home, project, asset, "failed", run_id, input_digest, error)
        metadata = {"error": type(error).__name__, "exit_code": error.exit_code, "do": error.problems[0].do}
        raise dg.Failure(
            str(error), metadata=metadata, allow_retries=not isinstance(error, Refused | InputInvalid)
        ) from error
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        stopped = Interrupted("stopped by a person", f"{project}/{asset}", do="run the same command to go on")
        activity.note(home, project, asset, "failed", run_id, input_digest, stopped)
        raise
    except BaseException as error:
        activity.note(home, project, asset, "failed", run_id, input_digest, error)
        raise
    if not more:
        activity.note(home, project, asset, "done", run_id, input_digest)


def by_stage(
    context: dg.AssetExecutionContext | dg.OpExecutionContext,
    line: Line,
    spec: Spec,
    launcher: SubprocessLauncher,
    tracked: TrackedRun | None = None,
) -> Made:
    """The artifact of a spec: found in the store, or made by its stage; one maker at a time.

    Whoever comes second waits for the lease, then adopts what the first one made.
    """
    project, asset, digest = spec.project, spec.asset, spec.input_digest
    found = line.store.find(digest)
    if found is None:

        def waits(holder: str) -> None:
            context.log.info(f"{asset} is being made by {holder or 'another process'}: waiting to adopt it")

        with line.store.lease(f"{asset}-{digest}", line.settings.lease_wait_s, waits) as lease:
            found = line.store.find(digest)
            if found is None:
                home = line.settings.home
                log = activity.log_path(home, project, asset)
                context.log.info(f"{spec.stage} stage starts; its log: {log}")
                result = launcher.launch(
                    context,
                    spec,
                    line.settings,
                    lease=lease,
                    log=log,
                    messages=activity.messages_path(home, project, asset),
                    listener=tracked,
                )
                return Made(_remember(line, spec, line.store.get(result.digest)), result)
    context.log.info(f"{asset} {short(found.digest)} was made before: adopted")
    return Made(_remember(line, spec, found), None)


def _remember(line: Line, spec: Spec, artifact: Artifact) -> Artifact:
    if spec.asset == "splits":
        pin_anchors(line, spec)  # before the head: with that alone they would seem to grow from themselves
    if not spec.run.experiment:
        line.store.set_head(spec.project, spec.asset, spec.input_digest, spec.inputs, artifact.digest)
    return artifact


def pin_anchors(line: Line, spec: Spec) -> None:
    """Keep what these splits grew from, once and for all."""
    inputs = SplitsInputs.model_validate(spec.inputs)
    name = anchors_pin(spec.project, inputs.dataset, inputs.options)
    if line.store.read_json(name) is None:
        line.store.write_json(name, {"anchors": inputs.anchors})


def tracked_run(
    tracking: Tracking, line: Line, spec: Spec, run_id: str
) -> contextlib.AbstractContextManager[TrackedRun]:
    """The MLflow run of one stage."""
    tags = {
        "ftaas.input": spec.input_digest,
        "ftaas.splits": str(spec.inputs.get("splits", "")),
        "ftaas.experimental": str(spec.run.experiment).lower(),
        "dagster.run_id": run_id,
    }
    params = flat({k: v for k, v in spec.inputs.items() if k in ("adapter", "training", "method", "family")})
    artifacts = line.settings.home / "mlflow"
    return tracking.run(line.settings.mlflow, artifacts, line.project.name, spec.asset, params, tags)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level: {"training.seed": 0}."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return out


def result(made: Made, **metadata: Any) -> dg.MaterializeResult[Any]:
    """What an asset returns: its output digest as the data version, and what a person wants to see."""
    artifact = made.artifact
    extra: dict[str, Any] = {"digest": artifact.digest, "folder": dg.MetadataValue.path(str(artifact.path))}
    if made.result:
        extra["seconds"] = round(made.result.seconds, 1)
    extra["reused"] = made.reused
    return dg.MaterializeResult(data_version=dg.DataVersion(artifact.digest), metadata={**metadata, **extra})


def table(rows: list[dict[str, Any]], columns: list[str]) -> dg.MarkdownMetadataValue:
    """Rows as a Markdown table, cells cut to what one can read."""

    def cell(value: Any) -> str:
        text = str(value).replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
        return text if len(text) <= 160 else text[:157] + "..."

    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(cell(row.get(c, '')) for c in columns)} |" for row in rows]
    return dg.MetadataValue.md("\n".join(lines))
