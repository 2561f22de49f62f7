"""What this machine is, as far as defaults and quotes depend on it. Light: nothing loads torch."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from typing import Literal

import psutil

_ASK_NVIDIA = ("--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits")
_BF16_SINCE = 8.0  # compute capability of Ampere


@dataclass(frozen=True)
class Machine:
    """One machine.

    Attributes:
        gpu_memory_gib: of the smallest GPU; 0 without one.
        bf16: the GPU computes in bfloat16.
        memory_gib: of the host.
    """

    device: Literal["cpu", "cuda"]
    gpus: int
    gpu: str
    gpu_memory_gib: float
    bf16: bool
    cores: int
    memory_gib: float

    @property
    def training_memory_gib(self) -> float:
        """Memory that a training process may fill."""
        return self.gpu_memory_gib if self.device == "cuda" else self.memory_gib


@cache
def found() -> Machine:
    """This machine. `CUDA_VISIBLE_DEVICES=""` hides its GPUs, here as in torch."""
    memory = psutil.virtual_memory().total / 2**30
    cores = len(os.sched_getaffinity(0))
    gpus = _gpus()
    if not gpus:
        return Machine("cpu", 0, "", 0.0, False, cores, memory)
    names, sizes, capabilities = zip(*gpus, strict=True)
    bf16 = min(capabilities) >= _BF16_SINCE
    return Machine("cuda", len(gpus), names[0], min(sizes) / 1024, bf16, cores, memory)


def _gpus() -> list[tuple[str, float, float]]:
    """Name, memory in MiB and compute capability of each GPU that a process here would see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    program = shutil.which("nvidia-smi")
    if program is None or visible in ("", "-1"):
        return []
    try:
        said = subprocess.run([program, *_ASK_NVIDIA], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):  # a driver that does not answer trains nothing
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in said.stdout.splitlines() if line.strip()]
    gpus = [(name, float(size), float(capability)) for name, size, capability in rows]
    return gpus[: len(visible.split(","))] if visible else gpus
