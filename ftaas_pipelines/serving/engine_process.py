"""One engine: the Bento's worker process on a private port, watched by the supervisor."""

import asyncio
import json
import os
import socket
import sys
import time
from pathlib import Path

import httpx

from ftaas_pipelines.serving import runtime
from ftaas_pipelines.serving.desired import Folder, ReleaseToServe
from ftaas_pipelines.serving.runtime import RuntimeState

DRAIN_S = 60.0
_PROBE_S = 0.1


class EngineProcess:
    """A running Bento and how it fares.

    Attributes:
        releases: what it was told to load.
        loaded: the projects that it answers for; empty until it is up.
        problems: project to why it was not loaded.
        in_flight: requests that it is answering now.
    """

    def __init__(self, releases: tuple[ReleaseToServe, ...]):
        self.releases = releases
        self.loaded: set[str] = set()
        self.problems: dict[str, str] = {}
        self.in_flight = 0
        self.started = time.monotonic()
        self.url = ""
        self._process: asyncio.subprocess.Process | None = None
        self._state_file: Path | None = None
        self._ended: int | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def release_of(self, project: str) -> str | None:
        """The release that it answers with for a project; None where it does not."""
        found = (r.release for r in self.releases if r.project == project and project in self.loaded)
        return next(found, None)

    @property
    def up(self) -> bool:
        """Whether it has said what it loaded, be it nothing."""
        return bool(self.loaded or self.problems) and self.ended is None

    @property
    def ended(self) -> int | None:
        """Its exit code, or None while it lives."""
        return self._ended

    async def start(self, folder: Folder, threads: int, client: httpx.AsyncClient) -> None:
        """Start the process on a free loopback port, and begin to watch it."""
        bento = Path(self.releases[0].bento_path)
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        folder.engines.mkdir(parents=True, exist_ok=True)
        self._state_file = folder.engines / f"{listener.getsockname()[1]}.json"
        state = RuntimeState(
            folder.environment,
            self.releases[0].runtime,
            [r.served() for r in self.releases],
            str(folder.responses),
            threads,
        )
        self._state_file.write_text(state.as_json(), encoding="utf-8")
        # The very worker that `bentoml serve` starts. Its arbiter would be a second supervisor between
        # us and it, and imports everything twice (2.5 s against 1.1 s for an empty service).
        command = ["-m", "_bentoml_impl.worker.service", str(bento), "--fd", str(listener.fileno())]
        options = ["--worker-id", "1", "--timeout-keep-alive", "75", "--timeout-graceful-shutdown", "10"]
        with listener:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                *options,
                cwd=bento / "src",
                env=_environ(folder, self._state_file, threads),
                pass_fds=[listener.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
            )
        self._tasks = [asyncio.create_task(self._wait()), asyncio.create_task(self._probe(client))]

    async def _wait(self) -> None:
        assert self._process is not None and self._state_file is not None
        self._ended = await self._process.wait()
        self._state_file.unlink(missing_ok=True)

    async def _probe(self, client: httpx.AsyncClient) -> None:
        """Ask until it answers: it answers once everything is loaded, so the first word is the last."""
        while self.ended is None:
            try:
                answer = await client.get(f"{self.url}/readyz", timeout=2.0)
            except httpx.HTTPError:
                await asyncio.sleep(_PROBE_S)
                continue
            if answer.status_code == 200:
                self.loaded = {r.project for r in self.releases}
                return
            try:
                detail = json.loads(answer.text)
                self.loaded, self.problems = set(detail["loaded"]), dict(detail["problems"])
            except (ValueError, KeyError, TypeError):
                self.problems = {r.project: answer.text[:500] for r in self.releases}
            return

    async def retire(self) -> None:
        """Let it finish what it is answering, then end it."""
        deadline = time.monotonic() + DRAIN_S
        while self.in_flight and self.ended is None and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await self.end()

    async def end(self) -> None:
        """SIGTERM, then SIGKILL. Returns when it is gone."""
        if self._process is None:
            return
        if self.ended is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(asyncio.shield(self._tasks[0]), 12.0)
            except TimeoutError:
                self._process.kill()
        await asyncio.gather(*self._tasks)


def _environ(folder: Folder, state_file: Path, threads: int) -> dict[str, str]:
    return {
        **os.environ,
        runtime.STATE_VARIABLE: str(state_file),
        runtime.PARENT_VARIABLE: str(os.getpid()),
        "OMP_NUM_THREADS": str(threads),
        "BENTOML_HOME": str(folder.path / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        # Byte code written beside the source would change the artifact that the Bento is.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
