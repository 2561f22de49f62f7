"""`python -m benchmarks.training`: what the platform adds to a training, and how fast one can be.

tax    steps per second of the train stage over those of a bare TRL script with the same hyperparameters, in
       turns: at least 0.97
start  process start to first step, the stage's (its proof of supervision taken off) over the script's: at
       most 1.1
speed  tokens per second of a Llama-3-8B-shaped model with random weights, LoRA, bf16, 4096 tokens, no padding
       (GPU only): at least 12,500 on one H200-class GPU

`--device cpu` (default) runs the first two on the embedded base; `--device cuda` adds `speed`, on a GPU.
The probed quote against what a training came to: `python -m benchmarks.quotes`.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import ROOT, THREADS, measure
from ftaas_pipelines.data import made, tables
from ftaas_pipelines.data.rows.records import Record, identity
from ftaas_pipelines.inference import bases
from ftaas_pipelines.projects.adapter import LoRA
from ftaas_pipelines.projects.recipe import Recipe, Training
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Store
from ftaas_pipelines.training import machine
from ftaas_pipelines.training.inputs import TrainInputs
from ftaas_pipelines.training.resolve import resolve

TAX, START = 0.97, 1.1
ROWS = 1200


def rows(first: int, count: int) -> list[dict[str, Any]]:
    """Rows of the record table: made-up fault reports, some forty tokens each."""
    out: list[dict[str, Any]] = []
    for i in range(first, first + count):
        said = f"Line {i % 7} stopped at {i % 24:02d}:15 and shows X{100 + i}. What does it mean?"
        answer = json.dumps({"part": ("pump", "belt", "valve", "motor")[i % 4], "step": f"check {i % 11}"})
        messages = [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
        out.append(made.row(Record(identity(messages, {}), messages, "rows", None, 1)))
    return out


def make_spec(folder: Path, steps: int) -> Spec:
    """A LoRA training of the embedded base, with evaluation and checkpoints rare enough to measure steps."""
    store = Store(folder)
    with store.create("splits", "benchmark") as draft:
        tables.write_rows(draft.path / "train.parquet", rows(0, ROWS), tables.RECORDS)
        tables.write_rows(draft.path / "validation.parquet", rows(ROWS, 32), tables.RECORDS)
        draft.content["counts"] = {"train": ROWS, "validation": 32}
    base = bases.resolve("embedded/tiny-causal", "main", ROOT)
    asked = Training(max_steps=steps, batch_size=8, learning_rate=3e-3, max_seq_tokens=128)
    how = resolve(Recipe(name="lora", training=asked), {"train": ROWS}, "causal", machine.found())
    inputs = TrainInputs(
        splits=draft.made.digest,
        base=bases.digest(base),
        family="causal",
        method=how.method,
        adapter=LoRA(),
        training=how.training,
        threads=1,
    )
    run = {
        "home": folder,
        "store": folder,
        "ledger": f"sqlite:///{folder}/ledger.db",
        "actor": "bench@example.com",
        "base_path": base,
        "experiment": True,
    }
    document = inputs.model_dump(mode="json")
    return Spec.model_validate(
        {"stage": "train", "project": "bench", "asset": "adapter_lora", "inputs": document, "run": run}
    )


BARE = """
import json, sys, time
began = float(sys.argv[3])
inputs, folder = json.load(open(sys.argv[1])), sys.argv[2]
import torch
torch.set_num_threads(1)
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer
import pyarrow.parquet as pq
t = inputs["training"]
set_seed(t["seed"])
tokenizer = AutoTokenizer.from_pretrained(inputs["base_path"])
model = AutoModelForCausalLM.from_pretrained(inputs["base_path"], dtype=torch.float32)
def read(name):
    rows = pq.read_table(f"{inputs['splits']}/{name}.parquet").to_pylist()
    rows = sorted(rows, key=lambda r: r["record_id"])
    return Dataset.from_list([{"prompt": [{"role": "user", "content": r["prompt"]}],
                               "completion": [{"role": "assistant", "content": r["answer"]}]} for r in rows])
class Clock(TrainerCallback):
    first = None
    def on_step_end(self, args, state, control, **_):
        now = time.time()
        if self.first is None:
            self.first, self.at = now, state.global_step
        self.last, self.step = now, state.global_step
clock = Clock()
config = SFTConfig(output_dir=folder, max_steps=t["max_steps"], per_device_train_batch_size=t["batch_size"],
    per_device_eval_batch_size=32, learning_rate=t["learning_rate"], lr_scheduler_type=t["schedule"],
    max_grad_norm=t["max_grad_norm"], weight_decay=t["weight_decay"], seed=t["seed"], data_seed=t["seed"],
    max_length=t["max_seq_tokens"], logging_steps=max(1, t["max_steps"] // 60), eval_strategy="steps",
    eval_steps=t["eval_steps"], save_strategy="steps", save_steps=t["save_steps"], save_total_limit=2,
    gradient_checkpointing=False, bf16=torch.cuda.is_available(), use_cpu=not torch.cuda.is_available(),
    dataloader_pin_memory=False, report_to=[], disable_tqdm=True)
trainer = SFTTrainer(model=model, args=config, train_dataset=read("train"), eval_dataset=read("validation"),
    processing_class=tokenizer, callbacks=[clock],
    peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
trainer.create_model_card = lambda *a, **k: None
trainer.train()
pace = (clock.step - clock.at) / (clock.last - clock.first)
json.dump({"start": clock.first - began, "steps_per_second": pace}, open(f"{folder}/result.json", "w"))
"""


def bare(spec: Spec, folder: Path) -> dict[str, float]:
    """The bare script: its start (process start to the end of its first step) and its steps per second."""
    import time

    folder.mkdir(parents=True)
    inputs = {**spec.inputs, "base_path": str(spec.run.base_path)}
    inputs["splits"] = str(Store(spec.run.store).get(spec.inputs["splits"]).path)
    (folder / "inputs.json").write_text(json.dumps(inputs), encoding="utf-8")
    (folder / "bare.py").write_text(BARE, encoding="utf-8")
    command = [str(folder / "bare.py"), str(folder / "inputs.json"), str(folder), str(time.time())]
    measure(command, {**os.environ, **THREADS}, folder / "log")
    return json.loads((folder / "result.json").read_text("utf-8"))


def stage(spec: Spec, folder: Path) -> dict[str, float]:
    """The train stage by hand: the same figures, read off the reports it gives; its proof apart."""
    import shutil
    import time

    shutil.copytree(spec.run.store, folder / "store", symlinks=True)
    shutil.rmtree(folder / "store" / "proofs", ignore_errors=True)
    where = spec.run.model_copy(update={"store": folder / "store"})
    here = spec.model_copy(deep=True, update={"run": where})
    (folder / "spec.json").write_text(here.model_dump_json(), encoding="utf-8")
    command = ["-m", "ftaas_pipelines.stages.train", "--ungoverned", "--spec", str(folder / "spec.json")]
    began = time.time()
    measure([*command, "--out", str(folder / "result.json")], {**os.environ, **THREADS}, folder / "log")
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    made_at = json.loads((folder / "result.json").read_text("utf-8"))["digest"]
    attested = Store(folder / "store").get(made_at).attestation
    logs = [m for m in lines if m["type"] == "metrics" and "loss" in m["values"]]
    first, last = logs[0], logs[-1]
    # The first log comes after `logging_steps` steps: their time is taken off at the pace of the others.
    pace = (last["step"] - first["step"]) / (last["at"] - first["at"])
    proof = float(attested["supervision"]["seconds"])
    return {
        "start": first["at"] - began - (first["step"] - 1) / pace - proof,
        "steps_per_second": pace,
        "proof": proof,
    }


def tax(folder: Path, steps: int, runs: int) -> list[tuple[str, str, str, bool]]:
    """Stage and script in turns, after one of each that is thrown away; medians compared."""
    spec = make_spec(folder / "store", steps)
    by: dict[str, list[dict[str, float]]] = {"bare": [], "stage": []}
    for i in range(runs + 1):
        by["bare"].append(bare(spec, folder / f"bare-{i}"))
        by["stage"].append(stage(spec, folder / f"stage-{i}"))

    def middle(which: str, figure: str) -> float:
        return statistics.median(one[figure] for one in by[which][1:])

    ratio = middle("stage", "steps_per_second") / middle("bare", "steps_per_second")
    start = middle("stage", "start") / middle("bare", "start")
    proof = middle("stage", "proof")
    pace = f"{middle('stage', 'steps_per_second'):.2f} of {middle('bare', 'steps_per_second'):.2f} steps/s"
    begun = f"{middle('stage', 'start'):.1f} s of {middle('bare', 'start'):.1f} s; proof {proof:.2f} s apart"
    return [
        (f"steps per second, stage over bare ({pace})", f"{ratio:.3f}", f">= {TAX}", ratio >= TAX),
        (f"start to first step ({begun})", f"{start:.3f}", f"<= {START}", start <= START),
    ]


def main() -> int:
    """Print each figure beside its bound; exit 1 when one is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=["tax", "speed"], help="one part alone")
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    found: list[tuple[str, str, str, bool]] = []
    with tempfile.TemporaryDirectory(prefix="ftaas-bench-") as folder:
        if options.only != "speed":
            found += tax(Path(folder), options.steps, options.runs)
        if options.device == "cuda" and options.only != "tax":
            from benchmarks import gpu_speed

            found += gpu_speed.figures(Path(folder))
    table = Table("figure", "seen", "bound", "")
    for what, seen, bound, holds in found:
        table.add_row(what, seen, bound, "" if holds else "MISSED")
    Console(width=140).print(table)
    return 0 if all(row[3] for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
