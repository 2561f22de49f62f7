"""`python -m benchmarks.overhead`: what the line costs over its four stages run by hand.

By hand: prepare (dataset, splits), train, evaluate and build as plain programs, into an empty store, from
the specs that the line itself would write. By the line: `ftaas run --until bento` in an empty home, with
the reviews answered in between by the example's invented people; answering is not measured. Both make the
same content, digest for digest, or the benchmark fails.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from assets.line import Line, open_line
from benchmarks import ROOT, Cost, environment, measure
from ftaas_pipelines import settings
from ftaas_pipelines.governance import gates
from ftaas_pipelines.review.sign_offs import requests
from ftaas_pipelines.stages.spec import Spec

NAME = "maintenance_assistant"
OWNER = "olga.owner@example.com"
BOUND = 1.35
WAITING = 3
# Once an installation, as `make setup` and the first start do: MLflow's and Dagster's own tables.
SET_UP = """
from ftaas_pipelines import settings
from ftaas_pipelines.cli.dagster_run import open_instance
from resources.tracking import Tracking
config = settings.load()
open_instance(config)
Tracking().client(config.mlflow).search_experiments()
"""


@dataclass
class Bench:
    """Where the runs happen: homes and stores under one folder, each used once."""

    folder: Path
    projects: Path
    policy: Path
    cold: bool
    runs: int = 0
    stages: list[tuple[Spec, str]] = field(default_factory=list)

    def by_line(self) -> Cost:
        """`ftaas run --until bento` from nothing; keeps the specs and digests of its stages."""
        self.runs += 1
        home = self.folder / f"home-{self.runs}"
        home.mkdir()
        env = environment(home, self.projects, self.policy, OWNER)
        log = self.folder / f"line-{self.runs}.log"
        if not self.cold:
            measure(["-c", SET_UP], env, log)
        command = ["-m", "ftaas_pipelines.cli.main", "run", NAME, "--until", "bento"]
        cost = measure(command, env, log, expected=WAITING)
        config = settings.load(env)
        answer(open_line(NAME, config))
        cost += measure(command, env, log)
        self.stages = stages(open_line(NAME, config))
        return cost

    def by_hand(self) -> Cost:
        """The same stages one after the other, into a store of their own.

        They name the ledger of the line that was run before: their grant to train is recorded there.
        """
        self.runs += 1
        folder = self.folder / f"hand-{self.runs}"
        folder.mkdir()
        env = environment(folder, self.projects, self.policy, OWNER)
        cost = Cost()
        for spec, digest in self.stages:
            here = spec.model_copy(
                update={"run": spec.run.model_copy(update={"store": folder / "store"})}, deep=True
            )
            path, out = folder / f"{spec.asset}.json", folder / f"{spec.asset}-out.json"
            path.write_text(here.model_dump_json(), encoding="utf-8")
            command = ["-m", f"ftaas_pipelines.stages.{spec.stage}", "--spec", str(path), "--out", str(out)]
            cost += measure(command, env, folder / f"{spec.asset}.log")
            made = json.loads(out.read_text("utf-8"))
            if made["digest"] != digest or made["reused"]:
                raise SystemExit(f"{spec.asset}: the line made {digest}, by hand it is {made}")
        return cost


def answer(line: Line) -> None:
    """Approve what is open, as the invented people whom the example names."""
    for review in requests.reviews(line.ledger, project=NAME):
        said = {"decision": "approve", "comment": "Benchmark: answered by itself, not by a person."}
        requests.decide(line.ledger, review.id, by=review.who[0], **said)


def stages(line: Line) -> list[tuple[Spec, str]]:
    """The specs of a line that is made, in order, each with the digest of what it made."""
    (recipe,) = line.project.recipes  # with several, the line would also compare them on validation
    requirement = line.training_requirement()
    grant = gates.require(line.ledger, requirement, asset=f"adapter_{recipe.name}", actor=OWNER)
    specs = [
        line.dataset_spec(),
        line.splits_spec(),
        line.adapter_spec(recipe, grant.as_dict()),
        line.evaluation_spec(),
        line.bento_spec(),
    ]
    found = [(spec, line.store.find(spec.input_digest)) for spec in specs]
    return [(spec, artifact.digest) for spec, artifact in found if artifact is not None]


def shortened(folder: Path, steps: int) -> tuple[Path, Path]:
    """Projects and policy of a quick look: few steps, 32 test records, and a gate that lets it through."""
    target = folder / "projects" / NAME
    shutil.copytree(ROOT / "projects" / NAME, target)
    project = yaml.safe_load((target / "project.yaml").read_text("utf-8"))
    for recipe in project["recipes"]:
        recipe["training"] |= {"max_steps": steps, "warmup_steps": 0}
    project["evaluation"] |= {"thresholds": {}, "max_records": 32}
    (target / "project.yaml").write_text(yaml.safe_dump(project), encoding="utf-8")
    policy = yaml.safe_load((ROOT / "policy" / "platform.yaml").read_text("utf-8"))
    path = folder / "platform.yaml"
    path.write_text(yaml.safe_dump({**policy, "must_beat_naive": False}), encoding="utf-8")
    return target.parent, path


def report(hand: list[Cost], line: list[Cost]) -> bool:
    """Print every round and the medians; whether the bound is kept."""
    table = Table("round", "by hand, wall s", "CPU s", "by the line, wall s", "CPU s", "wall", "CPU")
    ratios: list[tuple[float, float]] = []
    for number, (h, m) in enumerate(zip(hand, line, strict=True), 1):
        ratios.append((m.wall_s / h.wall_s, m.cpu_s / h.cpu_s))
        costs = [f"{x:.1f}" for x in (h.wall_s, h.cpu_s, m.wall_s, m.cpu_s)]
        table.add_row(str(number), *costs, *(f"{r:.2f}" for r in ratios[-1]))
    wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    kept = max(wall, cpu) <= BOUND
    screen = Console()
    screen.print(table)
    verdict = "kept" if kept else "broken"
    screen.print(f"median ratio: wall {wall:.2f}, CPU {cpu:.2f}; bound {BOUND}: {verdict}", highlight=False)
    return kept


def main() -> int:
    """Measure, print the ratio beside its bound; 1 when it is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description="Line over stages.")
    parser.add_argument("--repeat", type=int, default=1, help="rounds, in alternating order")
    parser.add_argument("--steps", type=int, help="a quick look: so many training steps, 32 test records")
    parser.add_argument("--cold", action="store_true", help="count the set-up of MLflow's tables too")
    options = parser.parse_args()
    hand: list[Cost] = []
    line: list[Cost] = []
    with tempfile.TemporaryDirectory(prefix="ftaas-overhead-") as name:
        folder = Path(name)
        projects, policy = ROOT / "projects", ROOT / "policy" / "platform.yaml"
        if options.steps:
            projects, policy = shortened(folder, options.steps)
        bench = Bench(folder, projects, policy, options.cold)
        for number in range(options.repeat):
            if number % 2 == 0:  # the first round needs the line's specs
                line.append(bench.by_line())
                hand.append(bench.by_hand())
            else:
                hand.append(bench.by_hand())
                line.append(bench.by_line())
        kept = report(hand, line)
    if options.steps:
        Console().print("a quick look: short stages make the line look dear; the bound is for the full one")
        return 0
    return int(not kept)


if __name__ == "__main__":
    raise SystemExit(main())
