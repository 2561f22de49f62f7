"""One engine: the Bento's worker process on a private port, watched by the supervisor."""

import asyncio
import json
import logging
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx

from ftaas_pipelines.serving import runtime
from ftaas_pipelines.serving.desired import Folder, ReleaseToServe
from ftaas_pipelines.serving.engines import AnsweringEngine
from ftaas_pipelines.serving.runtime import RuntimeState
from ftaas_pipelines.settings import Settings

TOLD_WITHIN_S = 120.0
_PROBE_S = 0.1
_log = logging.getLogger("ftaas.engine")


class EngineProcess(AnsweringEngine):
    """A running Bento and how it fares."""

    def __init__(self, releases: Sequence[ReleaseToServe]):
        super().__init__(releases)
        self.headers = {runtime.TOKEN_HEADER: secrets.token_hex(16)}
        self._environment, self._threads, self._adapter_mib = "", 1, 0
        self._process: asyncio.subprocess.Process | None = None
        self._state_file: Path | None = None
        self._ended: int | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ended(self) -> int | None:
        """Its exit code, or None while it lives."""
        return self._ended

    async def start(self, folder: Folder, settings: Settings, client: httpx.AsyncClient) -> None:
        """Start the process on a free loopback port, and begin to watch it."""
        bento = Path(next(iter(self.releases.values())).bento_path)
        self._environment, self._threads = folder.environment, settings.threads
        self._adapter_mib = settings.adapter_mib
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        folder.engines.mkdir(parents=True, exist_ok=True)
        self._state_file = folder.engines / f"{listener.getsockname()[1]}.json"
        self._state_file.write_text(self._state(), encoding="utf-8")
        # The Bento's service without BentoML's arbiter: it would be a second supervisor between us and it,
        # and imports everything twice (2.5 s against 1.1 s for an empty service).
        command = ["-m", "ftaas_pipelines.serving.worker", str(bento), "--fd", str(listener.fileno())]
        with listener:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                cwd=bento / "src",
                env=_environ(folder, self._state_file, settings.threads)
                | {runtime.TOKEN_VARIABLE: self.headers[runtime.TOKEN_HEADER]},
                pass_fds=[listener.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        self.pid = self._process.pid
        self._tasks = [asyncio.create_task(self._wait()), asyncio.create_task(self._probe(client))]
        self._hearing = asyncio.create_task(self._hear())

    def _state(self) -> str:
        releases = list(self.releases.values())
        served = [r.served() for r in releases]
        state = RuntimeState(self._environment, releases[0].runtime, served, self._threads, self._adapter_mib)
        return state.as_json()

    async def tell(self, releases: Sequence[ReleaseToServe], client: httpx.AsyncClient) -> None:
        """Have exactly these loaded, while it goes on answering. `loaded` and `problems` say how that went.

        Raises:
            httpx.HTTPError: it does not answer; what it has loaded is not known.
        """
        before, self.releases = self.releases, {r.release: r for r in releases}
        try:
            answer = await client.put(
                f"{self.url}/releases", content=self._state(), headers=self.headers, timeout=TOLD_WITHIN_S
            )
            answer.raise_for_status()
        except httpx.HTTPError:
            self.releases = before
            raise
        told = answer.json()
        self.loaded, self.problems = set(told["loaded"]), dict(told["problems"])

    async def _wait(self) -> None:
        assert self._process is not None and self._state_file is not None
        self._ended = await self._process.wait()
        self._state_file.unlink(missing_ok=True)

    async def _hear(self) -> None:
        """Put what the engine prints into the supervisor's log, a line each."""
        assert self._process is not None and self._process.stdout is not None
        while True:
            try:
                text = await self._process.stdout.readline()
            except ValueError:  # longer than a stream of asyncio takes (64 KiB): left out
                continue
            if not text:
                return
            said = text.decode("utf-8", "replace").rstrip().rpartition("\r")[2]  # of a progress bar its end
            _log.info("%s", said, extra={"about": {"engine": self.pid}})

    async def _probe(self, client: httpx.AsyncClient) -> None:
        """Ask until it answers: it answers once everything is loaded, so the first word is the last."""
        while self.ended is None:
            try:
                answer = await client.get(f"{self.url}/readyz", timeout=2.0)
            except httpx.HTTPError:
                await asyncio.sleep(_PROBE_S)
                continue
            if answer.status_code == 200:
                self.loaded = set(self.releases)
                return
            try:
                detail = json.loads(answer.text)
                self.loaded, self.problems = set(detail["loaded"]), dict(detail["problems"])
            except (ValueError, KeyError, TypeError):
                self.problems = dict.fromkeys(self.releases, answer.text[:500])
            return

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
