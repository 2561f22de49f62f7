"""`python -m benchmarks.commands`: what a command of `ftaas` costs before it does anything.

Each command in a fresh interpreter and an empty home, its `--help` and three light listings; beside it what
the libraries of the command line itself take to import (Typer, rich, pydantic, PyYAML). Least of three.
"""

import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import ROOT, environment, measure
from ftaas_pipelines.cli.main import COMMANDS

BOUND_S = 0.6
REPEAT = 3
LIBRARIES = "import typer.main, typer.rich_utils, rich.console, rich.table, pydantic, yaml"
LISTINGS = (["project", "list"], ["ledger", "show"], ["data", "list"])


def main() -> int:
    """Print each command's CPU seconds, and their ratio to the libraries; 1 when one breaks the bound."""
    screen = Console()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        env = environment(
            folder / "home", ROOT / "projects", ROOT / "policy" / "platform.yaml", "bench@example.com"
        )

        def least(arguments: list[str]) -> float:
            return min(measure(arguments, env, folder / "log").cpu_s for _ in range(REPEAT))

        libraries = least(["-c", LIBRARIES])
        table = Table("command", f"bound {BOUND_S} CPU s", f"times its libraries ({libraries:.2f} s)")
        worst = 0.0
        for command in (["--help"], *([name, "--help"] for name in COMMANDS), *LISTINGS):
            seconds = least(["-m", "ftaas_pipelines.cli.main", *command])
            worst = max(worst, seconds)
            table.add_row(" ".join(command), f"{seconds:.2f}", f"{seconds / libraries:.1f}")
    screen.print(table)
    return int(worst > BOUND_S)


if __name__ == "__main__":
    raise SystemExit(main())
