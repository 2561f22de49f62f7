"""`evaluation`: the candidate on test, beside base, champion and the naive baselines."""

import json
from typing import Any

import dagster as dg

from assets.automation import carry_on
from assets.builder_types import Definition
from assets.line import Line, open_line
from assets.making import Made, attempt, by_stage, result, table
from assets.naming import common, key
from ftaas_pipelines import settings
from ftaas_pipelines.errors import Problem
from ftaas_pipelines.governance import evidence
from ftaas_pipelines.projects.catalog import Loaded
from resources.launcher import SubprocessLauncher


def define(loaded: Loaded) -> list[Definition]:
    @dg.asset(
        **common(loaded, "evaluation", "Scores and answers on the untouched test split.", "python"),
        deps=[key(loaded, "candidate"), key(loaded, "splits")],
        automation_condition=carry_on(),
    )
    def evaluation(
        context: dg.AssetExecutionContext, launcher: SubprocessLauncher
    ) -> dg.MaterializeResult[Any]:
        line = open_line(loaded.name, settings.load())
        with attempt(context, line, "evaluation"):
            spec = line.evaluation_spec()
            made = by_stage(context, line, spec, launcher)
        return result(made, **_metadata(line, made))

    return [evaluation, *_checks(loaded)]


def _metadata(line: Line, made: Made) -> dict[str, Any]:
    artifact = made.artifact
    scores = artifact.content["scores"]
    rows: list[dict[str, Any]] = []
    for set_name, found in scores["sets"].items():
        for system, slices in found["systems"].items():
            cells = {
                m: f"{s['value']:.3f} ({s['low']:.3f} to {s['high']:.3f})"
                for m, s in slices["overall"].items()
            }
            rows.append({"set": set_name, "n": found["n"], "system": system, **cells})
    looks = line.ledger.entries("test_look", project=line.project.name, subject=artifact.content["splits"])
    columns = ["set", "n", "system", *line.project.evaluation.metrics, "loss"]
    return {
        "scores with 95% intervals": table(rows, columns),
        "samples": table(
            samples(artifact, line.project.evaluation.samples), ["prompt", "reference", "base", "candidate"]
        ),
        "looks at this test split": len(looks),
        "report": dg.MetadataValue.path(str(artifact.file("beside/report.html"))),
    }


def samples(artifact: Any, count: int) -> list[dict[str, str]]:
    """The first answers of the test set, side by side."""
    rows: list[dict[str, str]] = []
    with artifact.file("answers.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["set"] == "test" and len(rows) < count:
                rows.append({"prompt": row["prompt"], "reference": row["reference"], **row["answers"]})
    return rows


def _checks(loaded: Loaded) -> list[dg.AssetChecksDefinition]:
    asset = key(loaded, "evaluation")

    def scores_of(line: Line) -> dict[str, Any]:
        if line.evaluation is None:
            raise dg.Failure("the evaluation is not made for the current content", allow_retries=False)
        return line.evaluation.content["scores"]

    def outcome(problems: list[Problem], good: str) -> dg.AssetCheckResult:
        said = "\n".join(str(p) for p in problems)
        return dg.AssetCheckResult(passed=not problems, description=said or good)

    @dg.asset_check(asset=asset, name="thresholds", description="Test scores reach their thresholds.")
    def thresholds() -> dg.AssetCheckResult:
        line = open_line(loaded.name, settings.load())
        return outcome(
            evidence.threshold_problems(line.policy, line.project, scores_of(line)),
            "every threshold is reached",
        )

    @dg.asset_check(asset=asset, name="beats_naive", description="The adapter beats its naive baseline.")
    def beats_naive() -> dg.AssetCheckResult:
        line = open_line(loaded.name, settings.load())
        return outcome(
            evidence.naive_problems(line.policy, line.project, scores_of(line)),
            "the naive baseline is beaten",
        )

    @dg.asset_check(
        asset=asset, name="not_worse_than_champion", description="No clear loss against production."
    )
    def not_worse_than_champion() -> dg.AssetCheckResult:
        line = open_line(loaded.name, settings.load())
        return outcome(
            evidence.champion_problems(line.project, scores_of(line)), "not worse, or no champion yet"
        )

    return [thresholds, beats_naive, not_worse_than_champion]
