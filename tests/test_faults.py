"""kill -9 anywhere, then `ftaas run`: it completes, and nothing is half-made, orphaned or doubled."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import command_line

from ftaas_pipelines import settings
from ftaas_pipelines.store import Store

Run = Callable[..., Any]
pytestmark = pytest.mark.slow

# Asset, stage, and how many seconds into it lies its middle.
STAGES = [
    ("dataset", "prepare", 0.7),
    ("adapter_lora", "train", 5.0),
    ("evaluation", "evaluate", 2.0),
    ("bento", "build", 0.3),
]


@pytest.fixture
def codes(home: Path, project_factory: Callable[..., Path], ftaas: Run) -> Iterator[Path]:
    policy = Path(os.environ["FTAAS_POLICY"])
    policy.write_text(
        policy.read_text("utf-8").replace("must_beat_naive: true", "must_beat_naive: false"), "utf-8"
    )
    path = project_factory("codes", extra="evaluation: {max_new_tokens: 8}\n")
    path.write_text(path.read_text("utf-8").replace("max_steps: 4", "max_steps: 60, save_steps: 10"), "utf-8")
    yield path
    ftaas("deployment", "stop", "codes")


def sign(ftaas: Run) -> None:
    for review in ftaas("review", "list", "--json").json["reviews"]:
        said = ("--decision", "approve", "--comment", "looked", "--as", review["who"][0])
        assert ftaas("review", "decide", review["id"], *said).code == 0


def start(until: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "ftaas_pipelines.cli.main", "run", "codes", "--until", until, "--json"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def stage_of(run: "subprocess.Popen[bytes]", stage: str, after_s: float) -> psutil.Process:
    """The stage's process, some moments into its work."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert run.poll() is None, "the run ended before its stage could be killed"
        for child in psutil.Process(run.pid).children(recursive=True):
            if f"ftaas_pipelines.stages.{stage}" in command_line(child):
                time.sleep(after_s)
                return child
        time.sleep(0.05)
    raise AssertionError(f"the {stage} stage never started")


def gone(process: psutil.Process, within_s: float) -> bool:
    _, alive = psutil.wait_procs([process], timeout=within_s)
    return not alive or alive[0].status() == psutil.STATUS_ZOMBIE


def whole() -> Store:
    """The store, every artifact of which is intact."""
    store = Store(settings.load().store_path)
    assert not store.verify()
    return store


def test_killed_in_the_middle_of_every_stage_the_line_goes_on(codes: Path, ftaas: Run) -> None:
    for asset, stage, middle_s in STAGES:
        # The stage itself is killed: the run fails, and says so.
        run = start(asset)
        stage_of(run, stage, middle_s).kill()
        assert run.wait(120) == 1, f"{stage}: the run of a killed stage fails"
        whole()

        # The run is killed: its stage does not live on.
        run = start(asset)
        child = stage_of(run, stage, middle_s)
        run.kill()
        run.wait(30)
        assert gone(child, 15), f"{stage} trains on without its run"
        whole()

        done = ftaas("run", "codes", "--until", asset, "--json")
        assert done.code == 0, f"{asset}: {done.stdout}{done.stderr}"
        if asset == "dataset":
            assert ftaas("run", "codes", "--json").code == 3
            sign(ftaas)

    for _ in range(2):
        done = ftaas("run", "codes", "--json")
        if done.code == 3:
            sign(ftaas)
    done = ftaas("run", "codes", "--json")
    assert done.code == 0, done.stdout + done.stderr
    kinds = [a.kind for a in whole().all()]
    assert sorted(kinds) == sorted(
        ["dataset", "splits", "adapter", "candidate", "evaluation", "bento", "release"]
    ), "each thing was made once"
    assert len(ftaas("ledger", "show", "--kind", "release", "--json").json["entries"]) == 1
    assert ftaas("ledger", "verify").code == 0
    assert not list((settings.load().store_path / "work").glob("*"))


def test_ctrl_c_saves_what_can_be_resumed_and_says_130(codes: Path, ftaas: Run) -> None:
    assert ftaas("run", "codes", "--json").code == 3
    sign(ftaas)
    run = start("adapter_lora")
    child = stage_of(run, "train", 4)
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    assert gone(child, 5)
    assert ftaas("run", "codes", "--until", "adapter_lora").code == 0
