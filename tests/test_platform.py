"""`make dev` for real: Dagster, its daemon, MLflow, the endpoint, and a browser that looks at them."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from processes import command_line, dev_server, wait_for

from ftaas_pipelines import settings
from ftaas_pipelines.store import Store

Run = Callable[..., Any]
pytestmark = pytest.mark.slow


@pytest.fixture
def codes(home: Path, project_factory: Callable[..., Path]) -> Path:
    policy = Path(os.environ["FTAAS_POLICY"])
    policy.write_text(
        policy.read_text("utf-8").replace("must_beat_naive: true", "must_beat_naive: false"), "utf-8"
    )
    return project_factory("codes", extra="evaluation: {max_new_tokens: 8, max_records: 8}\n")


@pytest.fixture
def platform(codes: Path, ftaas: Run) -> Iterator["subprocess.Popen[bytes]"]:
    """`ftaas dev` until the end of the test; no process of it is left."""
    try:
        with dev_server("--without-label-studio") as dev:
            yield dev
    finally:
        ftaas("deployment", "stop", "codes")


def kill(platform: "subprocess.Popen[bytes]", but: psutil.Process | None = None) -> None:
    """kill -9 of the daemon and all below it; who ended meanwhile is as dead as we want it."""
    root = psutil.Process(platform.pid)
    for process in [*root.children(recursive=True), root]:
        if process != but:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def sign(ftaas: Run) -> None:
    for review in ftaas("review", "list", "--json").json["reviews"]:
        said = ("--decision", "approve", "--comment", "looked", "--as", review["who"][0])
        assert ftaas("review", "decide", review["id"], *said).code == 0


def test_the_daemon_takes_runs_and_carries_the_line_from_gate_to_gate(
    platform: "subprocess.Popen[bytes]", codes: Path, ftaas: Run
) -> None:
    config = settings.load()
    assert httpx.get(f"http://127.0.0.1:{config.port_mlflow}/health", timeout=10).status_code == 200

    # `ftaas run` hands the work to the daemon; a second one beside it adopts what the first makes.
    command = [sys.executable, "-m", "ftaas_pipelines.cli.main", "run", "codes", "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [child.wait(300) for child in both] == [3, 3]
    store = Store(config.store_path)
    assert len(store.all("dataset")) == len(store.all("splits")) == 1

    # A signature is all it takes: sensors and conditions do the rest, up to production's approval.
    sign(ftaas)

    def awaits_approval() -> bool:
        found = ftaas("review", "list", "--role", "approver", "--json").json["reviews"]
        return bool(found)

    wait_for(awaits_approval, 400)
    assert ftaas("ask", "codes", "hello", "--env", "staging", "--json").code == 0
    sign(ftaas)
    wait_for(lambda: ftaas("ask", "codes", "hello", "--json").code == 0, 200)
    assert len(store.all("adapter")) == len(store.all("release")) == 1

    # kill -9 of everything that belongs to the daemon; `ftaas run` goes on by itself.
    kill(platform)
    data = codes.parent / "data" / "rows.jsonl"
    data.write_bytes(data.read_bytes().replace(b"check 3", b"check 4", 1))
    assert ftaas("run", "codes", "--json").code == 3
    assert len(store.all("splits")) == 2 and not store.verify()


@pytest.mark.parametrize("stage", ["prepare", "train", "evaluate", "build"])
def test_a_daemon_killed_in_the_middle_of_a_stage_leaves_no_orphan(
    platform: "subprocess.Popen[bytes]", ftaas: Run, stage: str
) -> None:
    command = [sys.executable, "-m", "ftaas_pipelines.cli.main", "run", "codes", "--json"]
    if stage != "prepare":
        assert ftaas("run", "codes", "--json").code == 3
        sign(ftaas)
    waiting = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def running() -> list[psutil.Process]:
        family = psutil.Process(platform.pid).children(recursive=True)
        return [p for p in family if f"ftaas_pipelines.stages.{stage}" in command_line(p)]

    wait_for(lambda: bool(running()), 120)
    (child, *_) = running()
    kill(platform, but=child)
    _, alive = psutil.wait_procs([child], timeout=20)
    assert not alive, f"{stage} goes on without its daemon"
    waiting.kill()
    waiting.wait(10)

    for _ in range(2):
        if ftaas("run", "codes", "--json").code == 3:
            sign(ftaas)
    assert ftaas("run", "codes", "--json").code == 0
    store = Store(settings.load().store_path)
    assert len(store.all("splits")) == len(store.all("adapter")) == len(store.all("release")) == 1
    assert not store.verify()


def test_the_browser_shows_line_checks_waiting_and_the_loss_curve(
    platform: "subprocess.Popen[bytes]", codes: Path, ftaas: Run, tmp_path: Path
) -> None:
    from pictures import Ui, chromium

    if chromium() is None:
        assert not os.environ.get("FTAAS_CI"), "CI must have chromium"
        pytest.skip("chromium is not installed")
    assert ftaas("run", "codes", "--json").code == 3
    with Ui(settings.load().port_dagster, "codes", tmp_path) as ui:
        seen = ui.line()
        for asset in ("dataset", "splits", "dataset_sign_off", "adapter_lora", "release"):
            assert asset in seen
        assert "waiting for" in ui.checks("adapter_lora")
        sign(ftaas)
        wait_for(lambda: bool(Store(settings.load().store_path).all("adapter")), 200)
        assert ui.loss_curve("adapter_lora") > 10_000, "a picture of some size"
        assert "quality" in ui.checks("dataset")
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [
        "checks_adapter_lora.png",
        "checks_dataset.png",
        "line.png",
        "loss_adapter_lora.png",
    ]
