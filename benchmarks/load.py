"""`python -m benchmarks.load`: CPU seconds to load the code location, for 2 and for 100 projects."""

import argparse
import statistics
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import ROOT, environment, measure

EXAMPLE = ROOT / "projects" / "maintenance_assistant"
BOUNDS_CPU_S = {"the two examples": 2.5, "100 generated projects": 5.0}
# What Dagster's code server does with a code location: import it and build all that it holds. It then
# stays, so taking the interpreter down again (1 CPU s for 100 projects) is no part of loading: os._exit.
LOAD = """
import os
from ftaas_pipelines import settings
from ftaas_pipelines.definitions import build
build(settings.load()).get_repository_def().load_all_definitions()
os._exit(0)
"""


def generate(root: Path, count: int) -> Path:
    """A folder of `count` copies of the example, each under a name of its own, on the same data."""
    text = (EXAMPLE / "project.yaml").read_text("utf-8")
    for number in range(count):
        folder = root / f"generated_{number:03d}"
        folder.mkdir(parents=True)
        (folder / "data").symlink_to(EXAMPLE / "data")
        renamed = text.replace(f"name: {EXAMPLE.name}", f"name: {folder.name}", 1)
        (folder / "project.yaml").write_text(renamed, encoding="utf-8")
    return root


def main() -> int:
    """Measure, print the figures beside their bounds; 1 when a bound is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="loads of each kind; the median counts")
    repeat = parser.parse_args().repeat
    table = Table("code location", "median CPU s", "least", "most", "bound", "")
    broken = False
    with tempfile.TemporaryDirectory(prefix="ftaas-load-") as name:
        folder = Path(name)
        roots = (ROOT / "projects", generate(folder / "projects", 100))
        for (label, bound), projects in zip(BOUNDS_CPU_S.items(), roots, strict=True):
            env = environment(folder / "home", projects, ROOT / "policy" / "platform.yaml", "benchmark")
            costs = [measure(["-c", LOAD], env, folder / "load.log").cpu_s for _ in range(repeat)]
            said = (folder / "load.log").read_text("utf-8")
            if "left out" in said:
                raise SystemExit(f"a project is broken, so this would measure less than it says:\n{said}")
            median = statistics.median(costs)
            broken |= median > bound
            figures = [f"{x:.2f}" for x in (median, min(costs), max(costs), bound)]
            table.add_row(label, *figures, "broken" if median > bound else "kept")
    Console().print(table)
    return int(broken)


if __name__ == "__main__":
    raise SystemExit(main())
