"""`adapter_<recipe>`: trained, behind the gate that asks for signed splits."""

import contextlib
from collections.abc import Iterator
from typing import Any

import dagster as dg

from assets import activity, adapter_page, quoting, reviewing
from assets.automation import when_signed
from assets.builder_types import Definition
from assets.line import Line, open_line
from assets.making import attempt, by_stage, result, tracked_run
from assets.naming import common, key
from ftaas_pipelines import settings
from ftaas_pipelines.errors import Refused
from ftaas_pipelines.governance import gates
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.projects.recipe import Recipe
from resources.launcher import SubprocessLauncher
from resources.tracking import Tracking

CHECK = "human_sign_off"


def define(loaded: Loaded) -> list[Definition]:
    return [
        d for recipe in loaded.project.recipes for d in (_adapter(loaded, recipe), _learning(loaded, recipe))
    ]


def _adapter(loaded: Loaded, recipe: Recipe) -> Definition:
    name = f"adapter_{recipe.name}"
    asset_key, sign_off = key(loaded, name), key(loaded, "dataset_sign_off")
    how = "LoRA" if recipe.adapter.kind == "lora" else "full fine-tuning"
    description = f"{recipe.description or recipe.name}: {recipe.method.kind.upper()}, {how}."

    @dg.asset(
        **common(loaded, name, description, "pytorch"),
        deps=[
            key(loaded, "splits"),
            key(loaded, "dataset_review_request"),
            sign_off,
            *(key(loaded, f"adapter_{before}") for before in recipe.needs),
        ],
        check_specs=[
            dg.AssetCheckSpec(
                CHECK, asset=asset_key, blocking=True, description="SME and RAI signed these splits."
            )
        ],
        output_required=False,
        automation_condition=when_signed(sign_off),
    )
    def adapter(
        context: dg.AssetExecutionContext, launcher: SubprocessLauncher, tracking: Tracking
    ) -> Iterator[Any]:
        line = open_line(loaded.name, settings.load())
        with attempt(context, line, name, more=True):
            line.require_known_actor(name)
            requirement = line.training_requirement()
            reviewing.reread(line, requirement, name)
        try:
            line.require_row_review(name)
            grant = gates.require(line.ledger, requirement, asset=name, actor=line.actor)
        except Refused as refusal:
            with_dataset = key(loaded, "dataset") in context.job_def.asset_layer.selected_asset_keys
            waits = with_dataset and not gates.standing(line.ledger, requirement).refusals
            severity = dg.AssetCheckSeverity.WARN if waits else dg.AssetCheckSeverity.ERROR
            yield dg.AssetCheckResult(
                passed=False,
                check_name=CHECK,
                asset_key=asset_key,
                severity=severity,
                description=str(refusal),
            )
            if waits:  # green: red never means "waiting for Anna"
                activity.note(line.settings.home, loaded.name, name, "waiting", context.run_id)
                context.log.info(str(refusal))
                return
            activity.note(line.settings.home, loaded.name, name, "failed", context.run_id, error=refusal)
            raise dg.Failure(str(refusal), allow_retries=False) from refusal
        spec = line.adapter_spec(line.project.recipe(recipe.name), grant.as_dict())
        with attempt(context, line, name, spec.input_digest):
            if line.store.find(spec.input_digest):
                made, link = by_stage(context, line, spec, launcher), None
            else:
                line.require_fit(line.project.recipe(recipe.name))
                quoting.require_affordable(line, line.project.recipe(recipe.name))
                with (
                    _machine(context, line, recipe),
                    tracked_run(tracking, line, spec, context.run_id) as run,
                ):
                    made, link = by_stage(context, line, spec, launcher, run), run
                    run.tag(adapter=made.artifact.digest)
        url = adapter_page.mlflow_link(line.settings, link.experiment_id, link.run_id) if link else None
        yield result(made, **adapter_page.metadata(made, url))
        yield dg.AssetCheckResult(
            passed=True, check_name=CHECK, asset_key=asset_key, metadata=grant.as_dict()
        )

    return adapter


def _machine(
    context: dg.AssetExecutionContext, line: Line, recipe: Recipe
) -> contextlib.AbstractContextManager[Any]:
    """One training at a time on this machine; a provider's are its own.

    Not a Dagster pool: its slot outlives a killed run, and an in-process run that waits for one keeps a core
    busy (Dagster 1.13.27).
    """
    if recipe.provider:
        return contextlib.nullcontext()
    return line.store.lease("training", line.settings.lease_wait_s, context.log.info)


def _learning(loaded: Loaded, recipe: Recipe) -> dg.AssetChecksDefinition:
    name = f"adapter_{recipe.name}"

    what = "What the method optimises got better: the loss went down, or the reward up."

    @dg.asset_check(asset=key(loaded, name), name="learning", description=what)
    def learning() -> dg.AssetCheckResult:
        line = open_line(loaded.name, settings.load())
        artifact = line.adapter(line.project.recipe(recipe.name))
        if artifact is None:
            raise dg.Failure("the adapter is not made for the current content", allow_retries=False)
        passed, said = adapter_page.learnt(artifact)
        return dg.AssetCheckResult(passed=passed, severity=dg.AssetCheckSeverity.WARN, description=said)

    return learning
