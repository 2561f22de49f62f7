"""`ftaas dev`: the whole platform on this machine until Ctrl-C (what `make dev` runs)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import dagster_run, output
from ftaas_pipelines.errors import FtaasError, InputInvalid, Problem
from ftaas_pipelines.governance.ledger import open_ledger
from ftaas_pipelines.governance.requirement import policy_version
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.serving import deployments
from ftaas_pipelines.settings import ENVIRONMENTS, Settings
from resources import label_studio
from resources.label_studio import private
from resources.label_studio.server import Server, running
from resources.ports import require_free

_READY_S = 120
_STOP_S = 20


def dev(
    without_label_studio: Annotated[
        bool, typer.Option("--without-label-studio", help="reviews stay in the local inbox")
    ] = False,
    as_json: output.Json = False,
) -> None:
    """Dagster UI, MLflow UI, Label Studio and the deployed endpoints; Ctrl-C stops all of it."""
    settings = configuration.load()
    if dagster_run.live_platform(settings):
        raise InputInvalid(
            "the platform already runs here", str(settings.home), do="stop the other `make dev`"
        )
    for name, port in (("DAGSTER", settings.port_dagster), ("MLFLOW", settings.port_mlflow)):
        require_free(name, port)
    # A server that the settings name is somebody else's to start.
    ours = None if without_label_studio or settings.label_studio_url else Server(settings)
    children: dict[str, subprocess.Popen[bytes]] = {}
    started: list[str] = []
    try:
        if ours:
            ours.start(output.say)
            assert ours.child is not None
            children["label_studio"] = ours.child
        for name, command in _commands(settings).items():
            children[name] = _start(settings, name, command, ours.variables if ours else {})
        _wait(settings, children)
        if ours:
            ours.wait(output.say)
            _accounts(settings)
        started = [e for e in ENVIRONMENTS if deployments.start(settings, e)]
        note = {
            "process": dagster_run.process_tag(),
            "port_dagster": settings.port_dagster,
            "port_mlflow": settings.port_mlflow,
        }
        (settings.home / "dev.json").write_text(json.dumps(note), encoding="utf-8")
        document: dict[str, Any] = {"addresses": _addresses(settings), "stop": "Ctrl-C"}
        if ours:
            document["log_ins"] = str(private.passwords_file(settings.home))
        output.emit(as_json, document, lambda screen: _show(screen, settings))
        while all(child.poll() is None for child in children.values()):
            time.sleep(0.5)
        dead = next(name for name, child in children.items() if child.poll() is not None)
        raise FtaasError(f"{dead} ended by itself", "make dev", do=f"see {_log(settings, dead)}")
    except KeyboardInterrupt:
        output.say("stopping")
    finally:
        (settings.home / "dev.json").unlink(missing_ok=True)
        if ours:
            ours.stop()
        for child in children.values():
            _stop(child)
        for environment in started:
            deployments.halt(settings, environment)


def _accounts(settings: Settings) -> None:
    """Accounts for the people of the projects; whoever cannot have one is named, and the rest goes on."""
    from resources.label_studio import people

    tool = label_studio.connect(settings, open_ledger(settings, policy_version(load_policy(settings.policy))))
    assert tool is not None
    projects, _ = catalog.load_all(settings.projects, settings.policy)
    wanted = people.asked_of(loaded.project for loaded in projects)
    output.say(f"accounts in Label Studio for {len(wanted)} people")
    problems: list[Problem] = tool.provision(wanted)
    for problem in problems:
        output.say(str(problem))


def _commands(settings: Settings) -> dict[str, list[str]]:
    binaries = Path(sys.executable).parent
    dagster = [str(binaries / "dagster"), "dev", "-m", "ftaas_pipelines.definitions", "-h", "127.0.0.1"]
    mlflow = [
        str(binaries / "mlflow"),
        "server",
        "--host",
        "127.0.0.1",
        "--backend-store-uri",
        settings.mlflow,
    ]
    artifacts = (settings.home / "mlflow").resolve().as_uri()
    return {
        "dagster": [*dagster, "-p", str(settings.port_dagster)],
        "mlflow": [
            *mlflow,
            "--port",
            str(settings.port_mlflow),
            "--workers",
            "1",
            "--default-artifact-root",
            artifacts,
        ],
    }


def _start(
    settings: Settings, name: str, command: list[str], more: dict[str, str]
) -> "subprocess.Popen[bytes]":
    log = _log(settings, name)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        **settings.environ(),
        **dagster_run.dagster_environment(settings),
        **more,
        "FTAAS_DAEMON": "1",
        "PYTHONWARNINGS": "ignore",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Seven job workers of 240 MB each, for features that nothing here uses.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with log.open("wb") as sink:
        # A group of its own, so that Ctrl-C reaches only this process, which then stops them in order.
        return subprocess.Popen(
            command, env=environment, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )


def _log(settings: Settings, name: str) -> Path:
    return settings.home / "logs" / "dev" / f"{name}.log"


def _wait(settings: Settings, children: dict[str, Any]) -> None:
    """Until both UIs answer.

    Raises:
        FtaasError: one ended, or is not there in time.
    """
    urls = {
        "dagster": f"http://127.0.0.1:{settings.port_dagster}/server_info",
        "mlflow": f"http://127.0.0.1:{settings.port_mlflow}/health",
    }
    deadline = time.monotonic() + _READY_S
    for name, url in urls.items():
        output.say(f"waiting for {name}")
        while not _answers(url):
            if children[name].poll() is not None or time.monotonic() > deadline:
                raise FtaasError(f"{name} did not start", "make dev", do=f"see {_log(settings, name)}")
            time.sleep(0.5)


def _answers(url: str) -> bool:
    import httpx

    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False


def _addresses(settings: Settings) -> dict[str, str]:
    found = {
        "Dagster": f"http://127.0.0.1:{settings.port_dagster}",
        "MLflow": f"http://127.0.0.1:{settings.port_mlflow}",
    }
    if note := running(settings.home):
        found["Label Studio"] = note.url
    for d in deployments.deployments(settings):
        found[f"{d.project} ({d.env})"] = f"{d.url}/docs"
    return found


def _show(screen: Any, settings: Settings) -> None:
    screen.print(output.facts(_addresses(settings).items()))
    if running(settings.home):
        screen.print(f"log-ins of Label Studio: {private.passwords_file(settings.home)}; no other needs one")
    else:
        screen.print("no log-in is needed on this machine")
    screen.print("Ctrl-C stops all of it")


def _stop(child: "subprocess.Popen[bytes]") -> None:
    """End a server and every process below it."""
    try:
        family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    child.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs(family, timeout=_STOP_S)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    child.wait()
