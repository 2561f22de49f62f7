"""`candidate`: the adapter that does best on validation. Only it is ever scored on test."""

from typing import Any

import dagster as dg

from assets.automation import carry_on
from assets.builder_types import Definition
from assets.line import open_line
from assets.making import Made, attempt, by_stage, result, table
from assets.naming import common, key
from ftaas_pipelines import settings
from ftaas_pipelines.evaluation import choose
from ftaas_pipelines.projects.catalog import Loaded
from resources.launcher import SubprocessLauncher


def define(loaded: Loaded) -> list[Definition]:
    recipes = loaded.project.recipes

    @dg.asset(
        **common(loaded, "candidate", "The adapter chosen on validation scores.", "python"),
        deps=[key(loaded, f"adapter_{r.name}") for r in recipes if r.answers],
        automation_condition=carry_on(),
    )
    def candidate(
        context: dg.AssetExecutionContext, launcher: SubprocessLauncher
    ) -> dg.MaterializeResult[Any]:
        line = open_line(loaded.name, settings.load())
        with attempt(context, line, "candidate"):
            digest, adapters = line.candidate_digest(), line.adapters()
            scores: dict[str, Any] = {}
            if len(adapters) == 1:  # nothing to compare: the test will tell
                chosen, why = next(iter(adapters)), "the only recipe"
            else:
                compared = by_stage(context, line, line.comparison_spec(), launcher)
                scores = compared.artifact.content["scores"]
                chosen, why = choose.candidate(scores, list(adapters))
            with line.store.create("candidate", digest) as draft:
                draft.content.update(adapter=adapters[chosen], recipe=chosen, adapters=adapters, reason=why)
            inputs = line.comparison_spec().inputs
            line.store.set_head(loaded.name, "candidate", digest, inputs, draft.made.digest)
        return result(Made(draft.made, None), recipe=chosen, reason=why, **_validation(scores))

    return [candidate]


def _validation(scores: dict[str, Any]) -> dict[str, Any]:
    if not scores:
        return {}
    systems = scores["sets"]["validation"]["systems"]
    rows = [
        {"recipe": name, **{metric: f"{s['value']:.3f}" for metric, s in found["overall"].items()}}
        for name, found in systems.items()
    ]
    return {"validation": table(rows, list(rows[0]))}
