"""A search over settings: the best trial is the adapter, the worse end early, killed it goes on."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from test_training import Heard, base, finish, make_spec, start

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects.recipe import Search, Sweep
from ftaas_pipelines.stages import train as stage
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Store
from ftaas_pipelines.training import sweep
from ftaas_pipelines.training.inputs import TrainInputs

SEARCH = {
    "training.learning_rate": Search(low=1e-6, high=2e-2, log=True),
    "adapter.r": Search(choices=[4, 8]),
}


def swept(root: Path, trials: int = 5, search: dict[str, Search] = SEARCH, **training: Any) -> Spec:
    spec = make_spec(root, base(), **{"max_steps": 8, "eval_steps": 2, "save_steps": 2, **training})
    spec.inputs["sweep"] = Sweep(trials=trials, search=search, seed=1).model_dump(mode="json")
    return spec


def test_the_best_trial_becomes_the_adapter_and_the_worse_end_early(tmp_path: Path) -> None:
    heard, spec = Heard(), swept(tmp_path, trials=6)
    artifact = stage.make(spec, Store(tmp_path), heard)
    assert artifact is not None
    rows = [json.loads(x) for x in artifact.file("beside/trials.jsonl").read_text("utf-8").splitlines()]
    assert [row["number"] for row in rows] == list(range(6))
    complete = [row for row in rows if row["state"] == "complete"]
    assert any(row["state"] == "pruned" for row in rows), "nothing was ended early"
    assert all(max(map(int, row["losses"])) < 8 for row in rows if row["state"] == "pruned")
    best = min(complete, key=lambda row: row["loss"])
    assert artifact.content["trial"] == best["values"] and len(complete) > 1
    config = json.loads(artifact.file("adapter_config.json").read_text("utf-8"))
    assert (config["r"], config["lora_alpha"]) == (
        best["values"]["adapter.r"],
        2 * best["values"]["adapter.r"],
    )
    told = [(number, state) for number, _, state, _ in heard.trials]
    assert told[:2] == [(0, "running"), (0, "complete")] and len({number for number, _ in told}) == 6
    assert artifact.file("beside/metrics.jsonl").read_text("utf-8").count("eval_loss") == 4
    assert not (tmp_path / "work" / spec.input_digest).exists()


def test_the_same_values_alone_make_the_same_weights(tmp_path: Path) -> None:
    """What the sweep took is what a plain training with these settings makes."""
    artifact = stage.make(swept(tmp_path, trials=2), Store(tmp_path), Heard())
    assert artifact is not None
    spec = swept(tmp_path, trials=2)
    alone = sweep.changed(TrainInputs.model_validate(spec.inputs), artifact.content["trial"])
    spec.inputs = alone.model_dump(mode="json")
    plain = stage.make(spec, Store(tmp_path), Heard())
    assert plain is not None
    weights = "adapter_model.safetensors"
    assert plain.file(weights).read_bytes() == artifact.file(weights).read_bytes()


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_adapter(tmp_path: Path) -> None:
    expected = finish(swept(tmp_path / "a"), tmp_path / "a", hash_seed=1)
    spec = swept(tmp_path / "b")
    work = Store(spec.run.store).work(spec.input_digest)
    child = start(spec, tmp_path / "b", hash_seed=2)
    deadline = time.monotonic() + 200
    while not list(work.glob("trial-1/checkpoint-*/whole.json")):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait(60)
    assert len((work / sweep.FILE).read_text("utf-8").splitlines()) >= 1, "a finished trial is kept"
    assert finish(spec, tmp_path / "b", hash_seed=3) == expected


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"training.learning_rat": Search(low=0.1, high=0.2)}, "no setting of the recipe"),
        ({"base.id": Search(choices=["a", "b"])}, "training, adapter or method"),
        ({"training.learning_rate": Search(low=0.1, high=10.0)}, "less than 1"),
        ({"adapter.r": Search(choices=[0, 8])}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_searched_is_said_before_anything_is_trained(
    tmp_path: Path, search: dict[str, Search], said: str
) -> None:
    heard = Heard()
    with pytest.raises(InputInvalid, match=said):
        stage.make(swept(tmp_path, search=search), Store(tmp_path), heard)
    assert not heard.trials and not heard.figures
