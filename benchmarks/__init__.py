"""Figures that the platform promises, each printed beside its bound. See docs/benchmarks.md."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
THREADS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GX_ANALYTICS_ENABLED": "False",
    "DAGSTER_DISABLE_TELEMETRY": "yes",
}


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock, and CPU seconds (user and system) of a process and all it waited for."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


def measure(arguments: Sequence[str], env: Mapping[str, str], log: Path, expected: int = 0) -> Cost:
    """The cost of `python ARGUMENTS…` as a process of its own; its output goes to `log`.

    Raises:
        SystemExit: it did not end with the expected exit code; shows the end of its log.
    """
    with log.open("w", encoding="utf-8") as output:
        began = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, *arguments], env=dict(env), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
        # wait4 tells the usage of this very child and of the children that it waited for.
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != expected:
        said = log.read_text("utf-8")[-2000:]
        raise SystemExit(f"{' '.join(arguments)} ended with {child.returncode}, not {expected}:\n{said}")
    return Cost(wall, usage.ru_utime + usage.ru_stime)


def environment(home: Path, projects: Path, policy: Path, actor: str) -> dict[str, str]:
    """The environment of a measured process: nothing of this machine's own platform."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FTAAS_", "DAGSTER_"))}
    chosen = {"HOME": home, "PROJECTS": projects, "POLICY": policy, "ACTOR": actor}
    return {**kept, **THREADS, **{f"FTAAS_{name}": str(value) for name, value in chosen.items()}}
