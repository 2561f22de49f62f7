"""A budget is held: before the first step by the probe, on the way with a checkpoint; and short memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_online_methods import prepared, wanted
from test_online_methods import train as online
from test_training import ROOT, Heard, base, finish, make_spec

from ftaas_pipelines.errors import InputInvalid, Refused
from ftaas_pipelines.projects import prices
from ftaas_pipelines.projects.adapter import FullFineTuning, LoRA
from ftaas_pipelines.projects.project import Budget
from ftaas_pipelines.stages import train as stage
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Artifact, Store
from ftaas_pipelines.training import checkpoints
from ftaas_pipelines.training.planning import exhausted, probe, settle

TABLE = prices.load(ROOT / "policy" / "prices.yaml")


def priced(spec: Spec, **budget: float) -> Spec:
    """The spec on a machine at 2 USD an hour, with a budget."""
    spec.run.terms = prices.terms(TABLE, Budget(usd_per_hour=2.0), 2, 16).as_dict()
    spec.run.budget = budget
    return spec


def train(spec: Spec, root: Path) -> Artifact:
    made = stage.make(spec, Store(root), Heard())
    assert made is not None
    return made


def work(spec: Spec, root: Path) -> Path:
    return Store(root).work(spec.input_digest)


@pytest.mark.parametrize(
    ("adapter", "asked"),
    [
        (LoRA(dropout=0.2), {"gradient_accumulation": 2}),
        (FullFineTuning(kind="full"), {"neftune_alpha": 5.0, "max_grad_norm": 0.5}),
    ],
    ids=["lora, dropout", "full, noise"],
)
def test_the_probe_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: Any, asked: dict[str, Any]
) -> None:
    probed = train(make_spec(tmp_path / "a", base(), adapter, **asked), tmp_path / "a")
    monkeypatch.setattr(settle.Settle, "on_train_begin", lambda *_, **__: None)
    bare = train(make_spec(tmp_path / "b", base(), adapter, **asked), tmp_path / "b")
    assert probed.digest == bare.digest
    curves = [a.file("beside/metrics.jsonl").read_text("utf-8") for a in (probed, bare)]
    assert curves[0] == curves[1], "not the losses, nor what is counted beside them"
    assert probed.attestation["quote"]["basis"] == "probed"
    assert bare.attestation["quote"]["basis"] == "estimate"
    assert probed.attestation["actual"]["tokens"] == bare.attestation["actual"]["tokens"]


@pytest.mark.parametrize("bound", ["usd", "kwh", "co2e_kg"])
def test_what_the_budget_does_not_cover_is_refused_before_the_first_step(tmp_path: Path, bound: str) -> None:
    spec, heard = priced(make_spec(tmp_path, base()), **{bound: 1e-9}), Heard()
    with pytest.raises(Refused, match=rf"budget\.{bound}.*probed.*1e-09 may be spent.*too much") as refused:
        stage.make(spec, Store(tmp_path), heard)
    assert refused.value.exit_code == 3
    assert not heard.figures and not Store(tmp_path).all("adapter")
    assert checkpoints.newest(work(spec, tmp_path)) is None


def test_a_budget_that_breaks_on_the_way_pauses_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unhindered = train(make_spec(tmp_path / "a", base()), tmp_path / "a")

    # The probe is refused; then it is made to have been too hopeful, as on a machine that slows down.
    spec = priced(make_spec(tmp_path / "b", base()), kwh=1e-9)
    with pytest.raises(Refused, match="would break its budget"):
        train(spec, tmp_path / "b")
    kept = work(spec, tmp_path / "b") / probe.FILE
    said = json.loads(kept.read_text("utf-8"))
    hopeful = {name: value / 1e9 for name, value in said.items() if name.endswith("_s")}
    kept.write_text(json.dumps({**said, **hopeful}), encoding="utf-8")
    monkeypatch.setattr("ftaas_pipelines.training.planning.duration.saving_s", lambda _: 0.0)
    monkeypatch.setattr(probe, "_LOOP_S", 1e-9)
    monkeypatch.setattr(
        probe, "_measure", lambda *_: pytest.fail("what was probed is read, not probed again")
    )
    with pytest.raises(
        Refused, match=r"budget\.kwh: the training used up its budget; a checkpoint of step 1 was saved"
    ) as broke:
        train(spec, tmp_path / "b")
    assert broke.value.exit_code == 3 and "kWh" in str(broke.value)
    assert not Store(tmp_path / "b").all("adapter")

    spec.run.budget = {"kwh": 1.0, "usd": 1.0, "co2e_kg": 1.0}
    resumed = train(spec, tmp_path / "b")
    assert resumed.attestation["resumed_from"] == 1
    assert resumed.digest == unhindered.digest
    actual = resumed.attestation["actual"]
    assert actual["usd"] == pytest.approx(actual["seconds"] / 3600 * 2.0, rel=1e-3)
    assert actual["kwh"] > 0 and resumed.attestation["cost_usd"] == actual["usd"]
    assert not work(spec, tmp_path / "b").exists() or not list(work(spec, tmp_path / "b").iterdir())


def test_a_damaged_probe_is_made_again(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, base())
    place = work(spec, tmp_path)
    place.mkdir(parents=True, exist_ok=True)
    (place / probe.FILE).write_text('{"pass_s": 1', encoding="utf-8")
    assert train(spec, tmp_path).attestation["quote"]["basis"] == "probed"


def test_answers_sampled_on_the_way_settle_the_quote_by_the_first_steps(tmp_path: Path) -> None:
    """No batch can be tried before: four steps tell that ten thousand would take too long."""
    asked = {"max_steps": 10_000, "batch_size": 4}
    grpo = {"kind": "grpo", "rewards": [{"kind": "exact_match"}], "generations": 4, "max_new_tokens": 4}
    told = prepared(tmp_path / "s", (wanted(0, 10), wanted(50, 4)), grpo, None, None, asked)
    with pytest.raises(Refused, match=r"training_minutes.*checkpoint of step 4 was saved.*probed") as refused:
        online(tmp_path, told, max_minutes=2.0)
    assert refused.value.exit_code == 3
    assert checkpoints.newest(tmp_path / "work") == tmp_path / "work" / "checkpoint-4"


# -- memory ----------------------------------------------------------------------------------------


def test_what_cannot_fit_is_said_before_the_base_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exhausted, "have_gib", lambda: 0.8)
    monkeypatch.setattr("ftaas_pipelines.training.run.model_of", lambda *_: pytest.fail("it was read"))
    spec = make_spec(tmp_path, base(), LoRA(), batch_size=2048, max_seq_tokens=512)
    with pytest.raises(InputInvalid, match=r"does not fit into memory.*GiB.*batch_size: \d+ with") as refused:
        train(spec, tmp_path)
    assert refused.value.exit_code == 2


_SHORT = """
import json, resource, sys
from pathlib import Path
from ftaas_pipelines.stages import train
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Store
from ftaas_pipelines.training import run
from ftaas_pipelines.training.methods import sft
from ftaas_pipelines.training.planning import exhausted
sys.path.insert(0, "tests")
from test_training import Heard

spec = Spec.model_validate_json(Path(sys.argv[1]).read_text("utf-8"))
exhausted.require_memory = lambda *_: None
begin = run._go

def short(trainer, checkpoint):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (64 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    begin(trainer, checkpoint)

run._go = short
try:
    train.make(spec, Store(spec.run.store), Heard())
except Exception as error:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(json.dumps({"kind": type(error).__name__, "said": str(error)}))
"""


def test_running_out_of_memory_says_what_would_fit(tmp_path: Path) -> None:
    """A process that is really given too little: PyTorch's own error becomes one that helps."""
    spec = make_spec(tmp_path, base(), LoRA(), batch_size=48, gradient_accumulation=2, max_seq_tokens=256)
    (tmp_path / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", _SHORT, str(tmp_path / "spec.json")],
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kind"] == "InputInvalid", told
    assert "ran out of memory" in told["said"] and "allocate" in told["said"]
    assert "batch_size: 24 with gradient_accumulation: 4" in told["said"]


# -- the promise -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_probed_quote_keeps_its_bound_of_memory_on_a_long_run(tmp_path: Path) -> None:
    """Peak memory within 10%. Whether the clock keeps its 20% is for `benchmarks.quotes` to say, where
    nothing runs beside; here it is only said that quote and clock speak of the same.
    """
    spec = make_spec(
        tmp_path, base(), LoRA(r=16, alpha=32), max_steps=1200, batch_size=16, max_seq_tokens=128
    )
    made = Store(tmp_path).get(finish(spec, tmp_path / "stage", hash_seed=1))
    quoted, actual = made.attestation["quote"], made.attestation["actual"]
    assert quoted["memory_gib"]["value"] == pytest.approx(actual["memory_gib"], rel=0.10)
    assert actual["seconds"] / 2 < quoted["seconds"]["value"] < actual["seconds"] * 2
