"""`ftaas train`: an experiment. Ungoverned, within a small budget, marked, never released."""

from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError
from rich.console import Console

from assets.line import open_line
from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import dagster_run, output
from ftaas_pipelines.cli.watch import RunWatch
from ftaas_pipelines.errors import InputInvalid, Problem
from ftaas_pipelines.projects.recipe import Recipe
from ftaas_pipelines.store import short


def train(
    name: Annotated[str, typer.Argument(help="The project's name.")],
    recipe: Annotated[str, typer.Option(help="The recipe to start from.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="training.learning_rate=1e-4; may be repeated.")
    ] = None,
    as_json: output.Json = False,
) -> None:
    """An experiment on data that nobody needs to have signed: marked, and never released."""
    from assets.experiment import run_experiment  # imports Dagster: not for --help

    settings = configuration.load()
    line = open_line(name, settings)
    names = [r.name for r in line.project.recipes]
    if recipe not in names:
        raise InputInvalid("there is no such recipe", "--recipe", recipe, f"one of: {', '.join(names)}")
    tried = changed_recipe(line.project.recipe(recipe), changes or [])
    instance = dagster_run.open_instance(settings)
    dagster_run.close_dead_runs(instance)
    watch = RunWatch(settings, name, [f"adapter_{recipe}"], quiet=as_json)
    artifact, mlflow_url = run_experiment(instance, line, tried, watch, dagster_run.process_tag())
    document: dict[str, Any] = {
        "project": name,
        "recipe": recipe,
        "adapter": artifact.digest,
        "experimental": True,
        "folder": str(artifact.path),
        "mlflow": mlflow_url,
    }

    def show(screen: Console) -> None:
        screen.print(f"experimental adapter {short(artifact.digest)}: {artifact.path}")
        screen.print(
            "it is never released; to promote it, write its settings into project.yaml and run the line"
        )

    output.emit(as_json, document, show)


def changed_recipe(recipe: Recipe, changes: list[str]) -> Recipe:
    """A recipe with some values set: `training.learning_rate=1e-4`.

    Raises:
        InputInvalid: no such key, or a value it does not take.
    """
    values = recipe.model_dump(mode="json")
    for change in changes:
        path, separator, text = change.partition("=")
        if not separator:
            raise InputInvalid("is not KEY=VALUE", "--set", change, "write training.learning_rate=1e-4")
        *parents, last = path.split(".")
        place = values
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            raise InputInvalid("is not a setting of a recipe", "--set", path, "see `ftaas project schema`")
        place[last] = _number(yaml.safe_load(text))
    if "adapter" not in recipe.model_fields_set and values["adapter"] == recipe.adapter.model_dump(
        mode="json"
    ):
        del values["adapter"]  # still not named: one that goes on with another takes it over
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        found = [
            Problem(
                e["msg"],
                f"--set {'.'.join(map(str, e['loc']))}",
                repr(e["input"]),
                "see `ftaas project schema` for what it takes",
            )
            for e in error.errors()
        ]
        raise InputInvalid(found) from None


def _number(value: Any) -> Any:
    """YAML reads 1e-4 as text; everybody means the number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
