"""The supervisor's side of the watch: its process is there while some project has a rule. Light.

The watch ends by itself when there is none any more: it alone knows when all it did is written down.
"""

import asyncio
import contextlib
import os
import sys
import time
from dataclasses import dataclass

from ftaas_pipelines.serving.supervision import Supervisor, say
from ftaas_pipelines.settings import Settings

_LOOK_S = 0.5
_AGAIN_S = 10.0  # after it ended by itself


@dataclass
class Watching:
    """Starts the watch, and ends it."""

    settings: Settings
    supervisor: Supervisor
    _process: asyncio.subprocess.Process | None = None
    _retry_at: float = 0.0

    async def run(self) -> None:
        """Keep it running where it is needed, until cancelled; then it is ended."""
        # Whoever was killed may have left something that is done and not written down.
        left = (self.supervisor.folder.path / "rollout.json").exists()
        try:
            while True:
                await self._mend(left or any(w.ruled for w in self.supervisor.desired.projects.values()))
                left = False
                await asyncio.sleep(_LOOK_S)
        finally:
            await self._end()

    async def _mend(self, wanted: bool) -> None:
        if self._process and self._process.returncode is not None:
            if self._process.returncode:
                say(f"the rollout watch ended with {self._process.returncode}; it is started again")
                self._retry_at = time.monotonic() + _AGAIN_S
            self._process = None
        if wanted and not self._process and time.monotonic() >= self._retry_at:
            module = "ftaas_pipelines.serving.rollout.watch"
            environment = ["--environment", self.supervisor.folder.environment]
            try:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *("-m", module, *environment),
                    env={**os.environ, **self.settings.environ()},
                    stdin=asyncio.subprocess.DEVNULL,
                )
                os.setpriority(os.PRIO_PROCESS, self._process.pid, 10)  # answers come first
            except OSError as error:  # the machine has no room for a process
                say(f"the rollout watch does not start: {error}")
                self._retry_at = time.monotonic() + _AGAIN_S

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 5.0)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
