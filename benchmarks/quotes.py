"""`python -m benchmarks.quotes`: what trainings were said to take, beside what they took.

Each configuration is quoted twice, from counted tokens (`estimate`) and by the probe before its first step
(`probed`), and then trained by its stage in a process of its own. Exits 1 when a bound is broken: 30% of an
estimate; of a probed quote 10% of memory and, on runs of more than a minute, 20% of duration. On a machine
that others use, the ratios of durations are those of CPU seconds.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from assets.line import Line, open_line
from assets.quoting import Quoting
from benchmarks import ROOT, environment, measure
from ftaas_pipelines import settings
from ftaas_pipelines.projects.adapter import FullFineTuning, LoRA
from ftaas_pipelines.stages import prepare
from ftaas_pipelines.training.planning.quote import PROBED_MEMORY, PROBED_SECONDS, UNPROBED

OWNER = "olga.owner@example.com"
LONG_S = 60
BUSY = 0.9  # below, others computed here, too, and the clock says as much about them


class Silent:
    """A report that nobody hears."""

    def progress(self, done: float, message: str) -> None: ...

    def metrics(self, step: int, values: dict[str, float], trial: int | None = None) -> None: ...

    def trial(self, number: int, values: dict[str, Any], state: str, loss: float | None) -> None: ...

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None: ...


@dataclass(frozen=True)
class Configuration:
    """One training of an example project; `steps` at the full length of the benchmark."""

    project: str
    says: str
    adapter: LoRA | FullFineTuning
    batch: int
    steps: int


CONFIGURATIONS = (
    Configuration("maintenance_assistant", "causal, LoRA r 16, batch 8", LoRA(r=16, alpha=32), 8, 900),
    Configuration("maintenance_assistant", "causal, LoRA r 8, batch 32", LoRA(), 32, 250),
    Configuration("maintenance_assistant", "causal, full, batch 8", FullFineTuning(kind="full"), 8, 800),
    Configuration("grammar_correction", "T5, LoRA r 16, batch 16", LoRA(r=16, alpha=32), 16, 1200),
    Configuration("grammar_correction", "T5, full, batch 16", FullFineTuning(kind="full"), 16, 1400),
)


def line_of(project: str, config: settings.Settings) -> Line:
    """The line of a project whose splits are made."""
    for spec in ("dataset_spec", "splits_spec"):
        line = open_line(project, config)
        made = getattr(line, spec)()
        if line.store.find(made.input_digest) is None:
            prepare.make(made, line.store, Silent())
    return open_line(project, config)


def one(chosen: Configuration, folder: Path, part: float) -> dict[str, Any]:
    """Quote and train one configuration. Returns estimate, probed quote and actual."""
    folder.mkdir(exist_ok=True)
    env = environment(folder, ROOT / "projects", ROOT / "policy" / "platform.yaml", OWNER)
    line = line_of(chosen.project, settings.load(env))
    asked = line.project.recipes[0]
    changed = {"batch_size": chosen.batch, "max_steps": max(4, round(chosen.steps * part)), "warmup_steps": 0}
    training = asked.training.model_copy(update=changed)
    recipe = asked.model_copy(update={"adapter": chosen.adapter, "training": training})
    estimate = Quoting(line).of(recipe).as_dict()
    spec = line.adapter_spec(recipe, experiment=True)
    spec.run.max_minutes = None
    paths = {name: folder / f"{name}.json" for name in ("spec", "out")}
    paths["spec"].write_text(spec.model_dump_json(), encoding="utf-8")
    command = ["-m", "ftaas_pipelines.stages.train", "--ungoverned"]
    command += ["--spec", str(paths["spec"]), "--out", str(paths["out"])]
    measure(command, env, folder / "train.log")
    digest = json.loads(paths["out"].read_text("utf-8"))["digest"]
    attested = line.store.get(digest).attestation
    return {"estimate": estimate, "probed": attested["quote"], "actual": attested["actual"]}


def report(found: dict[str, dict[str, Any]]) -> bool:
    """Print every figure beside what came; whether every bound was kept."""
    columns = ("configuration", "figure", "estimate", "probed", "actual", "estimate/actual", "probed/actual")
    table, kept = Table(*columns), True
    for says, result in found.items():
        actual = result["actual"]
        for name, share in (("memory_gib", PROBED_MEMORY), ("seconds", PROBED_SECONDS)):
            values = [result[basis][name]["value"] for basis in ("estimate", "probed")]
            ratios = [value / actual[name] for value in values]
            if name == "seconds" and actual["busy"] < BUSY:  # CPU seconds: the estimate is of a free machine
                worked = actual["seconds"] * actual["busy"]
                ratios = [values[0] / worked, values[1] * actual["probe"]["busy"] / worked]
            good = [abs(ratios[0] - 1) <= UNPROBED, abs(ratios[1] - 1) <= share]
            if name == "seconds" and actual["seconds"] < LONG_S:
                good[1] = True  # nothing is promised of it
            kept &= all(good)
            shown = [
                f"{ratio:.2f}{'' if fine else ' BROKEN'}" for ratio, fine in zip(ratios, good, strict=True)
            ]
            table.add_row(says, name, *(f"{value:.3g}" for value in values), f"{actual[name]:.3g}", *shown)
        busy = f"{actual['busy']:.2f}"
        cost = f"{actual['probe']['seconds'] / actual['seconds']:.1%}"
        table.add_row(says, "busy; the probe's part", "", cost, busy, "", "", end_section=True)
    Console(width=130).print(table)
    return kept


def main() -> int:
    """Measure and print; 1 when a bound is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quotes", description="Quoted against actual.")
    parser.add_argument(
        "--part", type=float, default=1.0, help="so much of the steps: a quick look, no verdict"
    )
    parser.add_argument("--only", default="", help="configurations whose name holds this")
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="ftaas-quotes-") as name:
        for chosen in CONFIGURATIONS:
            if options.only in chosen.says:
                found[chosen.says] = one(chosen, Path(name) / chosen.project, options.part)
    kept = report(found)
    words = "kept" if kept else "broken"
    Console().print(f"bounds: {words}" if options.part == 1 else "a quick look: no verdict", highlight=False)
    return int(not kept and options.part == 1)


if __name__ == "__main__":
    raise SystemExit(main())
