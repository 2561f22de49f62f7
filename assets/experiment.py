"""Experiments: a lane of their own. Unsigned data, a small budget, marked, never released."""

import warnings
from typing import Any

import dagster as dg

from assets import activity
from assets.adapter_page import mlflow_link
from assets.line import Line
from assets.making import by_stage, tracked_run
from ftaas_pipelines.errors import FtaasError, Refused
from ftaas_pipelines.projects.recipe import Recipe
from ftaas_pipelines.store import Artifact, short
from resources.launcher import SubprocessLauncher
from resources.tracking import Tracking

warnings.filterwarnings("ignore", category=dg.PreviewWarning)  # Pipes' own; as in `definitions`


def run_experiment(
    instance: dg.DagsterInstance, line: Line, recipe: Recipe, watch: Any, process_tag: str
) -> tuple[Artifact, str]:
    """Train a recipe on the current splits as a Dagster run of its own.

    Returns:
        The experimental adapter and the link to its MLflow run.

    Raises:
        Refused: the data is too sensitive for the platform policy's leave, or the budget is spent.
        NotMade: there are no splits for the current content.
    """
    project, allowed = line.project, line.policy.experiments.sensitivity
    if project.data_sensitivity not in allowed:
        raise Refused(
            f"experiments are not allowed on {project.data_sensitivity} data",
            f"{project.name}: data_sensitivity",
            do=f"the platform policy allows {', '.join(allowed)}; train through the gate instead",
        )
    if recipe.provider:
        raise Refused(
            "experiments stay on this machine: unsigned data goes to no provider",
            f"{project.name}: recipes.{recipe.name}.provider",
            do="train it through the gate, or leave provider out",
        )
    line.require_fit(recipe)
    spec = line.adapter_spec(recipe, experiment=True)
    found: dict[str, Any] = {}

    @dg.op(name=f"experiment_{recipe.name}")
    def experiment(context: dg.OpExecutionContext) -> None:
        home = line.settings.home
        activity.note(home, project.name, spec.asset, "running", context.run_id, spec.input_digest)
        try:
            with tracked_run(Tracking(), line, spec, context.run_id) as run:
                made = by_stage(context, line, spec, SubprocessLauncher(), run)
                run.tag(adapter=made.artifact.digest)
        except FtaasError as error:
            found["error"] = error
            activity.note(home, project.name, spec.asset, "failed", context.run_id, spec.input_digest, error)
            raise dg.Failure(str(error), allow_retries=False) from error
        activity.note(home, project.name, spec.asset, "done", context.run_id, spec.input_digest)
        found.update(artifact=made.artifact, link=mlflow_link(line.settings, run.experiment_id, run.run_id))
        context.log.info(f"experimental adapter {short(made.artifact.digest)}")

    @dg.job(
        name=f"experiment_{project.name}",
        config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )
    def job() -> None:
        experiment()

    from dagster._core.utils import make_new_run_id  # what execute_in_process itself uses

    run_id = make_new_run_id()
    tags = {"ftaas/process": process_tag, "ftaas/experimental": "true", "ftaas/project": project.name}
    with watch(run_id):
        job.execute_in_process(instance=instance, raise_on_error=False, run_id=run_id, tags=tags)
    if "artifact" not in found:
        raise found.get("error") or FtaasError(
            "the experiment failed", project.name, do=f"`ftaas logs {project.name}`"
        )
    return found["artifact"], found["link"]
