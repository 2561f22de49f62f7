"""Who is making an asset right now, or how the last try ended: one small file per asset.

Written by the asset's body, read by `ftaas status` and `ftaas logs`. Never an authority: a record
whose process is gone is read as failed.
"""

import json
import os
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.store import now


@dataclass(frozen=True)
class Activity:
    """One try at an asset. `state` is running, done, failed, or waiting (for a person)."""

    project: str
    asset: str
    state: str
    run_id: str
    at: str
    pid: int
    process_started: float
    input: str = ""
    error: str = ""
    exit_code: int = 0

    @property
    def alive(self) -> bool:
        """Whether the process that wrote `running` still runs (and is not another with its number)."""
        return is_alive(self.pid, self.process_started)


def is_alive(pid: int, started: float) -> bool:
    """Whether this very process still runs: no later one with its number, and no zombie."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def folder(home: Path, project: str) -> Path:
    return home / "activity" / project


def note(
    home: Path,
    project: str,
    asset: str,
    state: str,
    run_id: str,
    input_digest: str = "",
    error: BaseException | None = None,
) -> None:
    """Record how a try stands, whole or not at all."""
    started = psutil.Process().create_time()
    said, code = "", 0
    if isinstance(error, FtaasError):
        said, code = str(error), error.exit_code
    elif error is not None:
        said, code = f"{type(error).__name__}: {error}", 1
    activity = Activity(project, asset, state, run_id, now(), os.getpid(), started, input_digest, said, code)
    path = folder(home, project) / f"{asset}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{asset}.{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(asdict(activity)), encoding="utf-8")
    temporary.replace(path)


def read(home: Path, project: str, asset: str) -> Activity | None:
    """The last try at an asset; one that was running in a process now gone reads as failed."""
    path = folder(home, project) / f"{asset}.json"
    try:
        activity = Activity(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    if activity.state == "running" and not activity.alive:
        return replace(activity, state="failed", error="its process was killed", exit_code=1)
    return activity


def log_path(home: Path, project: str, asset: str) -> Path:
    """Where the output of an asset's stage goes."""
    return home / "logs" / project / f"{asset}.log"


def messages_path(home: Path, project: str, asset: str) -> Path:
    """Where the progress and metrics of an asset's stage go, as JSON lines."""
    return home / "logs" / project / f"{asset}.jsonl"
