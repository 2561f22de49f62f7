"""One sensor turns valid sign-offs in the ledger into Dagster events, which carry the line on."""

import json

import dagster as dg

from assets.data_line import NotMade
from assets.line import Line, open_line
from ftaas_pipelines import settings
from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.gates import Requirement
from ftaas_pipelines.projects.catalog import Loaded

Told = dict[str, str]


def sign_off_events(line: Line, told: Told, instance: dg.DagsterInstance) -> list[dg.AssetMaterialization]:
    """The sign-offs that hold and that Dagster does not know of yet.

    Args:
        told: asset to the digest told last, empty once that no longer held; brought up to date here.
        instance: asked for its latest event, which `ftaas run` may have written meanwhile.
    """
    events: list[dg.AssetMaterialization] = []
    project = line.project
    asked: list[tuple[str, str]] = [("dataset_sign_off", "")]
    asked += [(f"approval_{e}", e) for e in project.serving.environments]
    for asset, environment in asked:
        label = f"{project.name}/{asset}"
        try:
            requirement = _requirement(line, environment)
        except NotMade:
            continue
        found = gates.standing(line.ledger, requirement)
        if not found.satisfied:
            told[label] = ""
            continue
        known = told.get(label) != "" and _latest(instance, dg.AssetKey([project.name, asset]))
        if requirement.digest not in (known, told.get(label)):
            signers = [f"{e.actor} as {e.body['role']}: {e.body['comment']}" for e in found.decisions]
            events.append(
                dg.AssetMaterialization(
                    dg.AssetKey([project.name, asset]),
                    metadata={
                        "for_data_version": requirement.digest,
                        "signed by": dg.MetadataValue.md(
                            "\n".join(f"- {s}" for s in signers) or "passes by platform policy"
                        ),
                    },
                    tags={"dagster/data_version": requirement.digest},
                )
            )
        told[label] = requirement.digest
    return events


def _latest(instance: dg.DagsterInstance, key: dg.AssetKey) -> str | None:
    """The digest that the latest event of a sign-off speaks of."""
    event = instance.get_latest_materialization_event(key)
    tags = event.asset_materialization.tags if event and event.asset_materialization else None
    return (tags or {}).get("dagster/data_version")


def _requirement(line: Line, environment: str) -> Requirement:
    return line.deployment_requirement(environment) if environment else line.training_requirement()


def decisions_sensor(projects: list[Loaded]) -> dg.SensorDefinition:
    @dg.sensor(
        name="decisions",
        minimum_interval_seconds=10,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports sign-offs and approvals that the ledger holds as events of their assets.",
        asset_selection=dg.AssetSelection.all(include_sources=True),
    )
    def decisions(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        told: Told = json.loads(context.cursor or "{}")
        events: list[dg.AssetMaterialization] = []
        for loaded in projects:
            try:
                events += sign_off_events(open_line(loaded.name, settings.load()), told, context.instance)
            except FtaasError as error:  # one broken project must not silence the others
                context.log.warning(str(error))
        return dg.SensorResult(asset_events=events, cursor=json.dumps(told))

    return decisions
