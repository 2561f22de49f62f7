"""One sensor brings answers into the ledger and turns what holds there into Dagster events.

It looks at every open round of every project in one go, which is cheap, and reads only what has changed
since it looked last. A slow sweep reads everything again, since a tool's counts miss edits.
"""

import contextlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import dagster as dg

from assets import reviewing
from assets.line import Line
from assets.reviews import validity
from ftaas_pipelines import settings
from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.governance import gates
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.store import digest_of, now
from sensors.asking import questions_to_ask, sign_offs, verdicts_to_apply

SWEEP_S = 600.0
Told = dict[str, str]


@dataclass
class Cursor:
    """What the sensor remembers.

    Attributes:
        told: sign-off to the digest told last, empty once that no longer held.
        shown: sign-off to what its check `still_valid` said last.
        marks: round to what its tool said of it last.
        seen: what a glance at ledger and tool gave last; while that is the same, nothing is read. Empty: it
            could not be told, or something could not be read then.
        out: when the tool was out of reach last (ISO 8601, UTC).
        swept: project to when everything of it was read again last, in seconds since 1970.
    """

    told: Told = field(default_factory=Told)
    shown: Told = field(default_factory=Told)
    marks: reviewing.Marks = field(default_factory=reviewing.Marks)
    seen: str = ""
    out: str = field(default_factory=now)  # who knows what was out of reach before this began
    swept: dict[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def read(cls, text: str | None) -> "Cursor":
        """What was remembered; nothing where another version wrote it: Dagster and ledger know enough."""
        with contextlib.suppress(TypeError, ValueError):
            return cls(**json.loads(text)) if text else cls()
        return cls()

    def to_sweep(self, names: Iterable[str]) -> str:
        """The project that was read again longest ago, once that is due; else empty.

        One a tick: Dagster gives a tick 60 s. A project swept in the future was so by a clock that jumped.
        """
        at = time.time()
        due = [n for n in names if not 0 <= at - self.swept.get(n, 0.0) < SWEEP_S]
        return min(due, key=lambda n: self.swept.get(n, 0.0), default="")


def sign_off_events(line: Line, told: Told, instance: dg.DagsterInstance) -> list[dg.AssetMaterialization]:
    """The sign-offs that hold and that Dagster does not know of yet.

    Args:
        told: asset to the digest told last, empty once that no longer held; brought up to date here.
        instance: asked for its latest event, which `ftaas run` may have written meanwhile.
    """
    events: list[dg.AssetMaterialization] = []
    project = line.project
    for asset, requirement in sign_offs(line):
        label = f"{project.name}/{asset}"
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


def validity_events(line: Line, shown: Told) -> list[dg.AssetCheckEvaluation]:
    """What the check `still_valid` says of sign-offs that hold, held or were refused, where that is new.

    Args:
        shown: sign-off to what its check said last; brought up to date here.
    """
    events: list[dg.AssetCheckEvaluation] = []
    for asset, requirement in sign_offs(line):
        label, found = f"{line.project.name}/{asset}", validity(line, asset, requirement)
        says = digest_of([found.passed, found.description])
        awaited = not found.passed and found.severity is dg.AssetCheckSeverity.WARN
        if shown.get(label) == says or (awaited and label not in shown):  # what never held was not lost
            continue
        shown[label] = says
        events.append(found)
    return events


def _lines(projects: Sequence[Loaded], log: logging.Logger) -> dict[str, Line]:
    """Those that can be read, by name, as they are now: every file is read once a tick.

    Raises:
        FtaasError: the platform policy or the projects folder cannot be read.
    """
    config = settings.load()
    found, problems = catalog.load_all(config.projects, config.policy)
    for problem in problems:  # one broken project must not silence the others
        log.warning(str(problem))
    policy, known = load_policy(config.policy), {p.name for p in projects}
    return {one.name: Line(one, policy, config) for one in found if one.name in known}


def _look(cursor: Cursor, lines: Mapping[str, Line], log: logging.Logger) -> set[str]:
    """Bring in what happened since the last tick; remember what was seen. Returns projects with faults.

    What could not be done is said, and tried again with the next tick.
    """
    before, reachable = cursor.seen, True
    try:
        cursor.seen = reviewing.glance(list(lines.values()))
    except FtaasError as error:
        log.warning(f"nothing is lost, and it is tried again: {error}")
        cursor.seen, cursor.out, reachable = "", now(), False
    quiet = cursor.seen == before != ""
    sweep = cursor.to_sweep(lines) if reachable else ""
    if sweep:
        cursor.swept[sweep] = time.time()
    cursor.swept = {name: at for name, at in cursor.swept.items() if name in lines}
    faulty: set[str] = set() if reachable else set(lines)
    for name, line in lines.items():
        if quiet and name != sweep:
            continue
        try:
            faults = [str(f) for f in reviewing.sync(line, cursor.marks, name == sweep, reachable)]
        except Exception as error:  # whatever is wrong with one, the others are looked at
            faults = [_words(error)]
        for fault in faults:
            log.warning(f"{name}: {fault}")
            faulty.add(name)
            cursor.seen = ""
    return faulty


def _words(error: Exception) -> str:
    """An error as a log may hold it: others than ours may quote rows."""
    return str(error) if isinstance(error, FtaasError) else type(error).__name__


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
        try:
            lines = _lines(projects, context.log)
        except FtaasError as error:
            context.log.warning(str(error))
            return dg.SensorResult(cursor=context.cursor)
        faulty = _look(cursor, lines, context.log)
        events: list[dg.AssetMaterialization | dg.AssetCheckEvaluation] = []
        runs: list[dg.RunRequest] = []
        for name, before in lines.items():
            line = Line(before.loaded, before.policy, before.settings)  # what it read before may be old now
            try:
                runs += verdicts_to_apply(line)
                if name not in faulty:
                    runs += questions_to_ask(line, cursor.out)
                events += sign_off_events(line, cursor.told, context.instance)
                events += validity_events(line, cursor.shown)
            except Exception as error:  # one broken project must not silence the others
                context.log.warning(f"{name}: {_words(error)}")
        return dg.SensorResult(asset_events=events, run_requests=runs, cursor=json.dumps(asdict(cursor)))

    return decisions
