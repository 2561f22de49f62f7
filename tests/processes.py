"""What a test asks of other processes, any of which may end while it asks; and `ftaas dev` as one."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil

from ftaas_pipelines import settings


def command_line(process: psutil.Process) -> list[str]:
    """The words it was started with; none once it has ended (a zombie has no command line to read)."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.5)


@contextlib.contextmanager
def dev_server(*options: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`ftaas dev` until the end of the block; no process of it is left."""
    dev = subprocess.Popen([sys.executable, "-m", "ftaas_pipelines.cli.main", "dev", *options])
    try:
        wait_for(lambda: (settings.load().home / "dev.json").exists() or dev.poll() is not None, 150)
        assert dev.poll() is None, "make dev ended by itself"
        yield dev
    finally:
        family = psutil.Process(dev.pid).children(recursive=True) if dev.poll() is None else []
        dev.send_signal(signal.SIGINT)
        dev.wait(60)
        _, alive = psutil.wait_procs(family, timeout=15)
        assert not alive, f"left behind: {[command_line(p) for p in alive]}"
