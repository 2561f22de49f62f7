"""One sensor looks whether the sign-offs of what serves still hold, and acts where they do not."""

import json
import logging
from collections.abc import Mapping
from datetime import datetime

import dagster as dg

from assets.line import Line
from assets.withdrawal import Judged, review_serving
from ftaas_pipelines import settings
from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.projects import catalog, yaml_lines
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.serving import deployments
from ftaas_pipelines.settings import Settings

CHECK = "still_valid"


def judge_all(config: Settings, log: logging.Logger, at: datetime | None = None) -> list[Judged]:
    """Judge everything that serves; one broken project never silences the others.

    Raises:
        FtaasError: the platform policy or the projects folder cannot be read.
    """
    serving = deployments.deployments(config)
    if not serving:
        return []
    lines = _lines(config)
    found: list[Judged] = []
    for deployed in serving:
        where = f"{deployed.project} in {deployed.env}"
        line = lines.get(deployed.project)
        if line is None:
            log.warning(f"{where} serves, but its project.yaml is gone or wrong: nobody can judge it")
            continue
        try:
            judged = review_serving(line, deployed.env, at)
        except Exception as error:  # whatever is wrong with one, the others are judged
            log.warning(f"{where} could not be judged: {error or type(error).__name__}")
            continue
        if judged:
            found.append(judged)
            if judged.did:
                log.warning(f"{judged.project} was {judged.did}: {judged}")
    return found


def _lines(config: Settings) -> dict[str, Line]:
    """Every project that can be read, also one that the policy allows no longer.

    Somebody who loses a role makes the projects that name them invalid: that must not save what serves.
    """
    policy = load_policy(config.policy)
    found: dict[str, Line] = {}
    twice: set[str] = set()
    for path in catalog.files(config.projects):
        try:
            project, _ = yaml_lines.parse(path, Project)
        except FtaasError:
            continue  # said where it serves
        if project.name in found:
            twice.add(project.name)
        found[project.name] = Line(Loaded(project, path.parent.resolve()), policy, config)
    return {name: line for name, line in found.items() if name not in twice}


def evaluations(judged: list[Judged], told: Mapping[str, str]) -> list[dg.AssetCheckEvaluation]:
    """What the check on each deployment shows, where that is not what was told last."""
    return [
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(_label(j).split("/")),
            check_name=CHECK,
            passed=not j.why,
            severity=dg.AssetCheckSeverity.ERROR,
            description=str(j),
            metadata={"release": j.release, "what was done": j.did or "nothing"},
        )
        for j in judged
        if told.get(_label(j)) != str(j)
    ]


def _label(judged: Judged) -> str:
    return f"{judged.project}/deployment_{judged.environment}"


@dg.sensor(
    name="withdrawal",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Stops or flags what serves when a sign-off behind it was withdrawn or has expired.",
)
def withdrawal_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    try:
        judged = judge_all(settings.load(), context.log)
    except FtaasError as error:
        return dg.SkipReason(str(error))
    events = evaluations(judged, json.loads(context.cursor or "{}"))
    return dg.SensorResult(asset_events=events, cursor=json.dumps({_label(j): str(j) for j in judged}))
