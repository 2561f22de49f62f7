"""`ftaas run`, `cancel`, `retry`: materialise what is out of date, through Dagster."""

import os
import signal
import time
from typing import Annotated, Any

import psutil
import typer
from rich.text import Text

from assets import activity, reviewing
from assets.line import Line, asset_names, open_line
from assets.states import AssetState, line_states, waiting_for
from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import dagster_run, output
from ftaas_pipelines.cli import plan as planning
from ftaas_pipelines.cli.watch import RunWatch
from ftaas_pipelines.errors import FtaasError, InputInvalid, Interrupted, Problem, Refused
from ftaas_pipelines.review.rows.row_standing import ASSET as ROW_REVIEW
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import short

_EXTERNAL = ("source_", "dataset_sign_off")
_BY_CODE = {2: InputInvalid, 3: Refused, 130: Interrupted}

Name = Annotated[str, typer.Argument(help="The project's name.")]


def run(
    name: Name,
    until: Annotated[str, typer.Option(help="Stop after this asset.")] = "",
    wait: Annotated[float, typer.Option(help="Seconds to wait at an open review.")] = 0,
    plan: Annotated[
        bool, typer.Option(help="Say what would be made, and what training would take; make nothing.")
    ] = False,
    as_json: output.Json = False,
) -> None:
    """Materialise what is out of date, with live progress.

    Exits 3 at an open review and says who is awaited; run the same command again once it is answered.
    """
    settings = configuration.load()
    if plan:
        line = open_line(name, settings)
        _check_until(line, until)
        planning.show(line, due_assets(line, until), _upto(line_states(line), until), as_json)
        return
    states = carry_out(settings, name, until, wait, quiet=as_json)
    document = {"project": name, "assets": [s.as_dict() for s in states], "waiting": []}
    output.emit(as_json, document, lambda screen: screen.print(f"{name}: everything is up to date"))


def carry_out(
    settings: Settings, name: str, until: str = "", wait_s: float = 0, quiet: bool = False
) -> list[AssetState]:
    """Run the line until nothing is due. Returns the states.

    Raises:
        Refused: a gate says no, or a review is open and `wait_s` is over.
        FtaasError: something failed.
    """
    deadline = time.monotonic() + wait_s
    line = open_line(name, settings)
    _check_until(line, until)
    try:
        line.look()
    except FtaasError as error:  # what is signed and landed may still be trained and deployed
        output.say(f"goes on with what was landed before: {error}")
    if _reaches_training(line, until):
        line.require_all_fit()  # what cannot be trained is said before anything is made
    tried: set[str] = set()
    told, faults = "", ""
    marks: reviewing.Marks = {}
    while True:
        found = reviewing.sync(open_line(name, settings), marks)
        if found and faults != str(found[0]):
            faults = str(found[0])
            output.say(f"goes on with what the ledger holds: {faults}")
        line = open_line(name, settings)
        states = _upto(line_states(line), until)
        due = due_assets(line, until)
        if not due:
            if dagster_run.sign_offs_moved(settings, name, _holding(states)):
                dagster_run.report_sign_offs(settings, name)
            _raise_refused(states)
            waiting = waiting_for(states)
            if not waiting:
                return states
            if time.monotonic() >= deadline:
                raise _waiting(states, waiting)
            if told != str(waiting):
                told = str(waiting)
                output.say(str(_waiting(states, waiting)))
            time.sleep(1)
            continue
        names = [s.name for s in due]
        mark = str([(s.name, s.state, s.digest, s.reason) for s in due])
        if mark in tried:
            raise FtaasError(
                f"made no headway: {', '.join(names)}", name, due[0].reason, f"see `ftaas logs {name}`"
            )
        tried.add(mark)
        dagster_run.close_dead_runs(dagster_run.open_instance(settings))
        dagster_run.report_sign_offs(settings, name)
        watch = RunWatch(settings, name, names, quiet)
        outcome = dagster_run.materialise(settings, name, names, watch)
        if not outcome.success:
            raise _failure(settings, name, names, outcome.run_id)


def due_assets(line: Line, until: str = "") -> list[AssetState]:
    """What one run can make now: all that is behind, up to the first closed gate."""
    due: list[AssetState] = []
    for state in _upto(line_states(line), until):
        if state.name.startswith(_EXTERNAL) or _is_approval(state.name):
            continue
        if state.state in ("waiting", "refused"):
            break
        if state.state in ("missing", "stale", "failed", "running"):
            due.append(state)
    return due


def _raise_refused(states: list[AssetState]) -> None:
    refused = next((s for s in states if s.state == "refused"), None)
    if refused:
        raise Refused(refused.reason)


def _holding(states: list[AssetState]) -> dict[str, str]:
    """Each sign-off, and the digest it holds for; empty where it does not."""
    sign_offs = (s for s in states if s.name == "dataset_sign_off" or _is_approval(s.name))
    return {s.name: (s.digest or "") if s.state == "fresh" else "" for s in sign_offs}


def _is_approval(name: str) -> bool:
    return name.startswith("approval_") and not name.startswith("approval_request_")


def _upto(states: list[AssetState], until: str) -> list[AssetState]:
    names = [s.name for s in states]
    return states[: names.index(until) + 1] if until else states


def _reaches_training(line: Line, until: str) -> bool:
    names = asset_names(line.loaded)
    return not until or names.index(until) >= names.index(f"adapter_{line.project.recipes[0].name}")


def _check_until(line: Line, until: str) -> None:
    names = asset_names(line.loaded)
    if until and until not in names:
        raise InputInvalid("there is no such asset", "--until", until, f"one of: {', '.join(names)}")


def _waiting(states: list[AssetState], waiting: list[dict[str, Any]]) -> Refused:
    problems = [
        Problem(
            f"{row['asset']} {short(_digest(states, row['asset']))}: waiting for {row['role']} "
            f"{' or '.join(row['who']) or 'nobody named'} since {row['since']}",
            do=_how(row),
        )
        for row in waiting
    ]
    return Refused(problems, waiting=waiting)


def _how(row: dict[str, Any]) -> str:
    if "://" in str(row["link"]):
        return f"open {row['link']}"
    if row["asset"] == ROW_REVIEW:
        return f"`{row['link']}`, then `ftaas review verdict {row['review']} RECORD --word … --as …`"
    return f"`{row['link']}`, then `ftaas review decide {row['review']} --decision … --comment … --as …`"


def _digest(states: list[AssetState], asset: str) -> str | None:
    return next((s.digest for s in states if s.name == asset), None)


def _failure(settings: Settings, project: str, names: list[str], run_id: str) -> FtaasError:
    """The error of a failed run: what its assets said, with their exit code."""
    failed = [
        a
        for a in (activity.read(settings.home, project, n) for n in names)
        if a and a.state == "failed" and a.run_id == run_id
    ]
    broken = dagster_run.failed_checks(settings, run_id)
    if not failed and broken:  # the data was made, and is not good enough to go on with
        do = "mend the data or the suite in project.yaml; `ftaas status` shows what was made"
        return InputInvalid([Problem(said, f"{project}/{check}", do=do) for check, said in broken])
    if not failed:
        do = f"see the run in the Dagster UI (`make dev`), run {run_id}"
        return FtaasError("the run failed", project, do=do)
    code = max(a.exit_code for a in failed)
    # The asset's own words are whole sentences already; `what` alone keeps their form.
    return _BY_CODE.get(code, FtaasError)([Problem(a.error) for a in failed])


def retry(name: Name, as_json: output.Json = False) -> None:
    """Run again what failed, and what follows it."""
    run(name, as_json=as_json)


def cancel(name: Name, as_json: output.Json = False) -> None:
    """Stop what runs for a project; what can be resumed is saved."""
    settings = configuration.load()
    line = open_line(name, settings)
    stopped: list[dict[str, Any]] = []
    for asset in asset_names(line.loaded):
        found = activity.read(settings.home, name, asset)
        if found and found.state == "running":
            _interrupt(found)
            stopped.append({"asset": asset, "run": found.run_id, "pid": found.pid})
    output.emit(
        as_json,
        {"project": name, "stopped": stopped},
        lambda screen: screen.print(
            Text("\n".join(f"stopping {s['asset']} (run {s['run'][:8]})" for s in stopped) or "nothing runs")
        ),
    )


def _interrupt(found: activity.Activity) -> None:
    """Ask the run to stop: as Ctrl-C would, so that its stage saves and its children end."""
    if found.alive and found.pid != os.getpid():
        psutil.Process(found.pid).send_signal(signal.SIGINT)
