"""One sensor brings answers into the ledger and turns what holds there into Dagster events.

It looks at every open round of every project in one go, which is cheap, and reads only what has changed
since it looked last. A slow sweep reads everything again, since a tool's counts miss edits.
"""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import dagster as dg

from assets import reviewing
from assets.data_line import NotMade
from assets.line import Line, open_line
from ftaas_pipelines import settings
from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.requirement import Requirement
from ftaas_pipelines.projects.catalog import Loaded

SWEEP_S = 600.0
Told = dict[str, str]


@dataclass
class Cursor:
    """What the sensor remembers.

    Attributes:
        told: sign-off to the digest told last, empty once that no longer held.
        marks: round to what its tool said of it last.
        seen: what a glance at ledger and tool gave last; while that is the same, nothing is read.
        swept: when everything was read again last, in seconds since 1970.
    """

    told: Told = field(default_factory=Told)
    marks: reviewing.Marks = field(default_factory=reviewing.Marks)
    seen: str = ""
    swept: float = 0.0

    @classmethod
    def read(cls, text: str | None) -> "Cursor":
        return cls(**json.loads(text)) if text else cls()


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
                        "signed by": dg.MetadataValue.md("\n".join(f"- {s}" for s in signers) or found.said),
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


def verdicts_to_apply(line: Line) -> list[dg.RunRequest]:
    """The dataset again, with the verdicts of a closed row review: version B. What follows carries on.

    Asked for as long as it is not made; Dagster takes each key once.
    """
    if not line.review_terms.limit:
        return []
    stands = line.row_review
    if stands.state != "closed" or line.dataset is not None:
        return []
    return [
        dg.RunRequest(
            run_key=f"verdicts of {stands.round} at {stands.since}",
            asset_selection=[dg.AssetKey([line.project.name, "dataset"])],
            tags={"ftaas/project": line.project.name, "ftaas/why": f"row review {stands.round} is closed"},
        )
    ]


def _lines(projects: Sequence[Loaded]) -> list[Line]:
    """Those that can be opened; what is wrong with the others is said where they are needed."""
    found: list[Line] = []
    for loaded in projects:
        with contextlib.suppress(FtaasError):
            found.append(open_line(loaded.name, settings.load()))
    return found


def _news(cursor: Cursor, projects: Sequence[Loaded]) -> bool:
    """Whether anything happened since the last tick; remembers what was seen."""
    before, cursor.seen = cursor.seen, reviewing.glance(_lines(projects))
    return not cursor.seen or cursor.seen != before


def _sync(projects: Sequence[Loaded], cursor: Cursor, sweep: bool) -> list[FtaasError]:
    faults: list[FtaasError] = []
    for line in _lines(projects):
        try:
            faults += reviewing.sync(line, cursor.marks, sweep)
        except FtaasError as error:
            faults.append(error)
    return faults


def decisions_sensor(projects: list[Loaded]) -> dg.SensorDefinition:
    @dg.sensor(
        name="decisions",
        minimum_interval_seconds=10,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Brings reviewers' answers into the ledger; reports sign-offs that hold as events.",
        asset_selection=dg.AssetSelection.all(include_sources=True),
    )
    def decisions(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        cursor = Cursor.read(context.cursor)
        sweep = time.time() - cursor.swept >= SWEEP_S or time.time() < cursor.swept  # a clock may jump
        if sweep:
            cursor.swept = time.time()
        if sweep or _news(cursor, projects):
            for fault in _sync(projects, cursor, sweep):
                context.log.warning(str(fault))
        events: list[dg.AssetMaterialization] = []
        runs: list[dg.RunRequest] = []
        for loaded in projects:
            try:
                line = open_line(loaded.name, settings.load())
                runs += verdicts_to_apply(line)
                events += sign_off_events(line, cursor.told, context.instance)
            except FtaasError as error:  # one broken project must not silence the others
                context.log.warning(str(error))
        return dg.SensorResult(asset_events=events, run_requests=runs, cursor=json.dumps(asdict(cursor)))

    return decisions
