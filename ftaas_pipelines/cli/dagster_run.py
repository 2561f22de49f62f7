"""Materialising assets through Dagster: by a live daemon where one runs, else in this process."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from assets import activity
from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import hold

PROCESS_TAG = "ftaas/process"
_HOME = Path(__file__).resolve().parents[2] / "dagster_home" / "local"


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run_id: str
    success: bool


def dagster_environment(settings: Settings) -> dict[str, str]:
    """The variables that make Dagster use this installation's instance."""
    folder = settings.home.resolve() / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    return {"DAGSTER_HOME": os.environ.get("DAGSTER_HOME", str(_HOME)), "FTAAS_DAGSTER_DIR": str(folder)}


def open_instance(settings: Settings) -> Any:
    """The Dagster instance of the local profile."""
    os.environ.update(dagster_environment(settings))
    import dagster as dg

    # Two first users would both set up the tables, and one would fail: so one at a time.
    with hold(settings.home / "dagster" / "setup.lock", wait_s=120):
        instance = dg.DagsterInstance.get()
        instance.get_runs(limit=1)
        instance.get_latest_materialization_event(dg.AssetKey("none"))
        instance.all_instigator_state()
    return instance


def close_dead_runs(instance: Any) -> list[str]:
    """Mark runs as failed whose process is gone (killed, or the machine restarted). Returns their ids."""
    import dagster as dg

    closed: list[str] = []
    for run in instance.get_runs(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])
    ):
        tag = run.tags.get(PROCESS_TAG)
        if tag and not _alive(tag):
            instance.report_run_failed(run, "its process was killed; `ftaas run` goes on from where it was")
            closed.append(run.run_id)
    return closed


def process_tag() -> str:
    """This process, so that it cannot be taken for a later one with its number."""
    return f"{os.getpid()}:{psutil.Process().create_time():.2f}"


def _alive(tag: str) -> bool:
    pid, _, started = tag.partition(":")
    return activity.is_alive(int(pid), float(started))


def live_platform(settings: Settings) -> dict[str, Any] | None:
    """What `make dev` wrote about itself, while it runs."""
    try:
        found = json.loads((settings.home / "dev.json").read_text("utf-8"))
    except FileNotFoundError:
        return None
    return found if _alive(found["process"]) else None


def materialise(
    settings: Settings, project: str, assets: Sequence[str], watch: Callable[[str], Any]
) -> Outcome:
    """Materialise assets of one project in one run and wait for its end.

    Args:
        watch: called with the run id; returns a context manager that shows progress meanwhile.

    Raises:
        FtaasError: the daemon did not take the run.
    """
    platform = live_platform(settings)
    if platform:
        return _by_daemon(settings, platform, project, assets, watch)
    return _in_process(settings, project, assets, watch)


def _in_process(
    settings: Settings, project: str, assets: Sequence[str], watch: Callable[[str], Any]
) -> Outcome:
    instance = open_instance(settings)
    import dagster as dg
    from dagster._core.utils import make_new_run_id  # what execute_in_process itself uses

    from ftaas_pipelines.definitions import build

    # Its events are told. Python would print its loggers' warnings, and Dagster sets their level itself.
    logging.getLogger("dagster").addHandler(logging.NullHandler())
    definitions = build(settings, only=project)
    job = definitions.resolve_implicit_global_asset_job_def()
    run_id = make_new_run_id()
    with watch(run_id):
        result = job.execute_in_process(
            instance=instance,
            asset_selection=[dg.AssetKey([project, a]) for a in assets],
            raise_on_error=False,
            run_id=run_id,
            tags={PROCESS_TAG: process_tag(), "ftaas/project": project},
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
    return Outcome(run_id, result.success)


def _by_daemon(
    settings: Settings,
    platform: dict[str, Any],
    project: str,
    assets: Sequence[str],
    watch: Callable[[str], Any],
) -> Outcome:
    import time

    import dagster as dg
    from dagster_graphql import DagsterGraphQLClient, DagsterGraphQLClientError

    client = DagsterGraphQLClient("127.0.0.1", port_number=platform["port_dagster"])
    try:
        run_id = client.submit_job_execution(
            "__ASSET_JOB",
            asset_selection=[dg.AssetKey([project, a]) for a in assets],
            tags={"ftaas/project": project},
        )
    except DagsterGraphQLClientError as error:
        raise FtaasError(
            "the running platform did not take the run",
            "make dev",
            str(error),
            "see its terminal, or stop it",
        ) from None
    instance = open_instance(settings)
    with watch(run_id):
        while True:
            run = instance.get_run_by_id(run_id)
            if run is not None and run.is_finished:
                return Outcome(run_id, run.is_success)
            time.sleep(0.5)


def failed_checks(settings: Settings, run_id: str) -> list[tuple[str, str]]:
    """The checks that stopped a run: `asset: check` and what it said."""
    import dagster as dg

    found: list[tuple[str, str]] = []
    events = open_instance(settings).all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    for entry in events:
        check = entry.get_dagster_event().asset_check_evaluation_data
        if not check.passed and check.severity is dg.AssetCheckSeverity.ERROR and check.blocking:
            found.append((f"{check.asset_key.path[-1]}: {check.check_name}", check.description or ""))
    return found


def sign_offs_moved(settings: Settings, project: str, holding: Mapping[str, str]) -> bool:
    """Whether Dagster was told otherwise of the sign-offs, so that it is worth loading it to tell it again.

    Args:
        holding: sign-off to the digest it holds for; empty where it does not hold.
    """
    path = _told(settings, project)
    told = json.loads(path.read_text("utf-8"))["told"] if path.exists() else {}
    return any(told.get(f"{project}/{asset}", "") != digest for asset, digest in holding.items())


def _told(settings: Settings, project: str) -> Path:
    return settings.home / "activity" / project / "sign_offs.json"


def report_sign_offs(settings: Settings, project: str) -> None:
    """Tell Dagster which sign-offs hold, and which no more, as the sensor `decisions` does in a daemon."""
    if live_platform(settings):
        return
    from assets.line import open_line
    from sensors.decisions import Cursor, sign_off_events, validity_events

    instance, line = open_instance(settings), open_line(project, settings)
    path = _told(settings, project)
    cursor = Cursor.read(path.read_text("utf-8") if path.exists() else None)
    for event in (*sign_off_events(line, cursor.told, instance), *validity_events(line, cursor.shown)):
        instance.report_runless_asset_event(event)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(cursor)), encoding="utf-8")
