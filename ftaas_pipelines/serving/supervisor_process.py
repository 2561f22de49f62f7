"""The supervisor seen from outside: start it, end it, and whether its port is free. Light."""

import os
import signal
import socket
import subprocess
import sys
import time

from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.serving import logs, tls
from ftaas_pipelines.serving.desired import Folder
from ftaas_pipelines.settings import Settings

_POLL_S = 0.1


def start(settings: Settings, folder: Folder) -> None:
    """Start the environment's supervisor in the background, unless one lives.

    Raises:
        FtaasError: it did not come up; its log says why.
    """
    if folder.supervisor() is not None:
        return
    (folder.path / "state.json").unlink(missing_ok=True)  # of a supervisor that is gone
    with folder.log.open("ab") as log:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "ftaas_pipelines.serving.supervisor",
                "--environment",
                folder.environment,
                "--detach",
            ],
            env={**os.environ, **settings.environ()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=True,
            start_new_session=True,
        )
    deadline = time.monotonic() + 20
    while folder.supervisor() is None or not (folder.path / "state.json").exists():
        if time.monotonic() > deadline:
            raise FtaasError("the supervisor did not start", str(folder.log), tail(folder), "see its log")
        time.sleep(_POLL_S)


def end(folder: Folder) -> None:
    """SIGTERM, wait until it and its engines are gone; SIGKILL if that takes too long."""
    process = folder.supervisor()
    if process is None:
        return
    os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + 40
    while folder.supervisor() == process:
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)  # its engines notice and end by themselves
        time.sleep(_POLL_S)


def check_port(settings: Settings, environment: str) -> None:
    """Make sure that a new supervisor can have its port, before anything is written.

    Raises:
        InputInvalid: it belongs to someone else, or cannot speak TLS with the files of the settings.
    """
    if tls.wanted(settings):
        tls.check(settings)
    port = settings.port(environment)
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise InputInvalid(
            f"port {port} is in use",
            environment,
            error.strerror or "",
            f"stop what uses it, or set FTAAS_PORT_{environment.upper()}",
        ) from None


def tail(folder: Folder) -> str:
    """The last lines of its log, for an error; requests are not meant."""
    lines = folder.log.read_text("utf-8", errors="replace").splitlines() if folder.log.exists() else []
    told = [line for line in lines if not logs.is_request(line)]
    return " / ".join(logs.readable(line) for line in told[-3:])
