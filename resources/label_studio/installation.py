"""Label Studio's server in an environment of its own: its versions would not fit into ours.

It stands beside `.venv` in the checkout (`.venv-label-studio`), so that every FTAAS_HOME shares it, and
is made from `requirements-label-studio.lock` on first use.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.store import file_digest, hold

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-label-studio"
LOCK = ROOT / "requirements-label-studio.lock"
PYTHON = FOLDER / "bin" / "python"
_READY = FOLDER / ".ready"
_TOLD_EVERY_S = 10.0


def is_installed() -> bool:
    """Whether the environment is there, complete, and made from the lock as it is now."""
    if not (LOCK.is_file() and _READY.is_file() and PYTHON.exists()):
        return False
    return _READY.read_text("utf-8").strip() == file_digest(LOCK)


def install(say: Callable[[str], None]) -> None:
    """Make the environment; does nothing where it is there. Takes a minute or some, and 1 GB.

    Raises:
        InputInvalid: this is no checkout: there is no lock to install from.
        FtaasError: pip failed; its output is in the log that the error names.
    """
    if is_installed():
        return
    if not LOCK.is_file():
        raise InputInvalid(
            "Label Studio can only be installed in a checkout of the platform",
            str(LOCK),
            do="set FTAAS_LABEL_STUDIO_URL and FTAAS_LABEL_STUDIO_TOKEN to a server that runs elsewhere",
        )
    with hold(FOLDER.with_name(f"{FOLDER.name}.lock"), on_wait=lambda who: say(f"waiting for {who}")):
        if is_installed():
            return
        packages = sum(1 for line in LOCK.read_text("utf-8").splitlines() if "==" in line)
        say(f"installing Label Studio into {FOLDER.name}: {packages} packages, 1 GB, some minutes, once")
        _READY.unlink(missing_ok=True)
        _run([sys.executable, "-m", "venv", str(FOLDER)], say)
        pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
        _run([*pip, "-r", str(LOCK)], say, packages)
        _READY.write_text(file_digest(LOCK) + "\n", "utf-8")
        say("Label Studio is installed")


def _run(command: list[str], say: Callable[[str], None], packages: int = 0) -> None:
    log = FOLDER.with_name(f"{FOLDER.name}.log")
    collected, told = 0, time.monotonic()
    with log.open("a", encoding="utf-8") as sink:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
        )
        assert child.stdout is not None
        for line in child.stdout:
            sink.write(line)
            collected += line.startswith("Collecting ")
            if packages and time.monotonic() - told > _TOLD_EVERY_S:
                told = time.monotonic()
                say(f"installing Label Studio: {min(collected, packages)} of {packages} packages fetched")
    if child.wait() != 0:
        raise FtaasError(
            "Label Studio could not be installed",
            str(log),
            f"exit code {child.returncode}",
            "see its end (is the package registry in reach?); `ftaas dev --without-label-studio` needs none",
        )
