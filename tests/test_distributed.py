"""One training as several processes: the same curve, one adapter, stopped and resumed together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_training import ROOT, base, make_spec

from ftaas_pipelines.projects.adapter import FullFineTuning, LoRA
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Artifact, Store
from ftaas_pipelines.training import checkpoints

TOLERANCE = {"rel": 2e-4, "abs": 2e-5}  # of a loss: sums in another order, in fp32


def two(root: Path, **training: Any) -> Spec:
    """The spec of `make_spec`, in two processes of half the batch each."""
    asked = {"batch_size": 4, "distributed": {"processes": 2}, **training}
    return make_spec(root, base(), asked.pop("adapter", LoRA()), **asked)


def launch(spec: Spec, folder: Path) -> "subprocess.Popen[bytes]":
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "ftaas_pipelines.stages.ranks", "train", "--ungoverned"]
    command += ["--spec", str(folder / "spec.json"), "--out", str(folder / "result.json")]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=log, stdout=log)


def finished(spec: Spec, folder: Path) -> Artifact:
    code = launch(spec, folder).wait(timeout=400)
    assert code == 0, (folder / "log").read_text("utf-8")[-3000:]
    result = json.loads((folder / "result.json").read_text("utf-8"))
    return Store(spec.run.store).get(result["digest"])


def curve(artifact: Artifact, figure: str = "loss") -> list[float]:
    lines = artifact.file("beside/metrics.jsonl").read_text("utf-8").splitlines()
    return [row[figure] for row in map(json.loads, lines) if figure in row]


def weights(artifact: Artifact) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(next(iter(artifact.path.glob("*.safetensors"))))


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_at_the_same_global_batch(tmp_path: Path) -> None:
    from test_training import finish

    alone = make_spec(tmp_path / "one", base(), LoRA(), max_steps=8, batch_size=8, eval_steps=4)
    one = Store(alone.run.store).get(finish(alone, tmp_path / "one", 1))
    both = finished(two(tmp_path / "two", max_steps=8, eval_steps=4), tmp_path / "two")
    assert len(curve(one)) == 8
    assert curve(both) == pytest.approx(curve(one), **TOLERANCE)
    # The trainer averages batch means: half of the rows a batch weighs short answers otherwise.
    assert curve(both, "eval_loss") == pytest.approx(curve(one, "eval_loss"), rel=5e-3)
    first, second = weights(one), weights(both)
    assert first.keys() == second.keys()
    assert max(float((first[k] - second[k]).abs().max()) for k in first) < 2e-4


@pytest.mark.slow
def test_ranks_stop_together_and_go_on_to_the_same_adapter(tmp_path: Path) -> None:
    """SIGTERM to torchrun, then a rank lost to SIGKILL, then to the end: the uninterrupted digest."""
    asked = {"max_steps": 24, "save_steps": 4, "eval_steps": 12}
    straight = finished(two(tmp_path / "a", **asked), tmp_path / "a")
    spec = two(tmp_path / "b", **asked)
    work = Store(spec.run.store).work(spec.input_digest)

    child = launch(spec, tmp_path / "b")
    wait_for_step(child, work, 4, tmp_path / "b")
    child.send_signal(signal.SIGTERM)
    assert child.wait(90) in (130, 1)
    stopped = checkpoints.newest(work)
    assert stopped is not None

    child = launch(spec, tmp_path / "b")
    wait_for_step(child, work, int(stopped.name[11:]) + 1, tmp_path / "b")
    ranks = [p for p in psutil.Process(child.pid).children(recursive=True) if "--spec" in p.cmdline()]
    assert len(ranks) == 2
    ranks[1].kill()
    assert child.wait(120) != 0
    assert not [p for p in ranks if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    assert finished(spec, tmp_path / "b").digest == straight.digest


def wait_for_step(child: "subprocess.Popen[bytes]", work: Path, step: int, folder: Path) -> None:
    deadline = time.monotonic() + 200
    while not any(int(p.parent.name[11:]) >= step for p in work.glob(f"checkpoint-*/{checkpoints.MARKER}")):
        said = (folder / "log").read_text("utf-8")[-2000:]
        assert child.poll() is None and time.monotonic() < deadline, said
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [LoRA(), FullFineTuning(kind="full")], ids=["lora", "full"])
def test_weights_sharded_over_processes_learn_the_same(tmp_path: Path, adapter: Any) -> None:
    asked = {"max_steps": 4, "adapter": adapter}
    ddp = finished(two(tmp_path / "ddp", **asked), tmp_path / "ddp")
    sharded = two(tmp_path / "fsdp", distributed={"processes": 2, "strategy": "fsdp2"}, **asked)
    fsdp = finished(sharded, tmp_path / "fsdp")
    assert curve(fsdp) == pytest.approx(curve(ddp), **TOLERANCE)
    first, second = weights(ddp), weights(fsdp)
    assert first.keys() == second.keys()
    assert max(float((first[k] - second[k]).abs().max()) for k in first) < 2e-4
