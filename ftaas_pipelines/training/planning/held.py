"""How much memory this process, or its GPU, has held at most."""

import contextlib
import ctypes
import resource
from pathlib import Path

_GIB = 2**30
_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"  # proc(5): resets VmHWM to what is held now


def forget(device: str) -> None:
    """Let the next `peak_gib` speak of what comes from here on; what is free goes back to the kernel."""
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
    with contextlib.suppress(OSError):  # not Linux, or a kernel that forbids it: the peak is that of all time
        _REFS.write_text(_FORGET_PEAK, encoding="ascii")


def peak_gib(device: str) -> float:
    """The peak since the last `forget`: what PyTorch allocated on the GPU, or the memory of the process."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / _GIB
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / _GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB


def limit_gib() -> float:
    """What a container or a resource limit leaves this process of the machine's memory."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    limits = [float("inf") if soft == resource.RLIM_INFINITY else soft / _GIB]
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(file.read_text("ascii")) / _GIB)
    return min(limits)
