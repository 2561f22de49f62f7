"""`python -m ftaas_pipelines.serving.supervisor --environment ENV`: one environment's supervisor.

It owns the public port, starts an engine per (base model, runtime) from what desired.json says,
and switches when a new engine is healthy: the old one answers until then, finishes what it is
answering, and ends. What crashes is started again, ever more slowly. State goes to state.json.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn

from ftaas_pipelines import settings as all_settings
from ftaas_pipelines.serving.desired import Desired, Folder, ReleaseToServe
from ftaas_pipelines.serving.engine_process import EngineProcess
from ftaas_pipelines.serving.gateway import Gateway
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import now

HEALTHY_WITHIN_S = 180.0
TICK_S = 0.1
_STEADY_S = 60.0  # an engine that ran so long did not crash at its start: the back-off begins anew


@dataclass
class Group:
    """The engine of one (base model, runtime): the one that answers, and perhaps its successor."""

    wanted: tuple[ReleaseToServe, ...] = ()
    attempt: int = 0
    engine: EngineProcess | None = None
    coming: EngineProcess | None = None
    reason: str = ""
    refused_attempt: int = -1  # the attempt that its successor failed; not tried again by itself
    crashes: int = 0
    retry_at: float = 0.0

    def failed(self, reason: str) -> None:
        """Note a successor that did not come up."""
        self.reason, self.refused_attempt = reason, self.attempt
        self.crashes += 1
        self.retry_at = time.monotonic() + min(30.0, 0.5 * 2**self.crashes)

    @property
    def due(self) -> bool:
        """Whether a successor should be started now."""
        if self.coming is not None or time.monotonic() < self.retry_at or not self.wanted:
            return False
        if self.engine is None:
            return True
        return self.engine.releases != self.wanted and self.refused_attempt != self.attempt


@dataclass
class Supervisor:
    """The loop that makes what is equal to what should be."""

    settings: Settings
    folder: Folder
    client: httpx.AsyncClient
    groups: dict[str, Group] = field(default_factory=dict)
    desired: Desired = field(default_factory=Desired)
    _retiring: set[asyncio.Task[None]] = field(default_factory=set)
    _written: dict[str, Any] = field(default_factory=dict)
    _since: str = field(default_factory=now)
    _stamp: tuple[int, int] | None = None

    def serving(self) -> list[EngineProcess]:
        return [g.engine for _, g in sorted(self.groups.items()) if g.engine and g.engine.ended is None]

    async def run(self) -> None:
        """Watch and mend until cancelled."""
        while True:
            self._read()
            for key in sorted(self.groups):
                await self._mend(key, self.groups[key])
            self._write()
            await asyncio.sleep(TICK_S)

    async def close(self) -> None:
        """End every engine; say so."""
        engines = [e for g in self.groups.values() for e in (g.engine, g.coming) if e]
        await asyncio.gather(*(e.end() for e in engines), *self._retiring)
        self.folder.write("state.json", {**self._state(), "state": "stopped", "engine_pid": None})

    def _read(self) -> None:
        stamp = self.folder.stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            desired = self.desired = self.folder.desired()
        except ValueError as error:
            _say(f"desired.json is not understood, what was wanted before stays: {error}")
            return
        wanted: dict[str, list[ReleaseToServe]] = {key: [] for key in self.groups}
        for _, entry in sorted(desired.projects.items()):
            wanted.setdefault(entry.release.key, []).append(entry.release)
        for key, releases in wanted.items():
            group = self.groups.setdefault(key, Group())
            group.attempt = desired.attempt
            if group.wanted != tuple(releases):
                group.wanted, group.reason, group.crashes, group.retry_at = tuple(releases), "", 0, 0.0

    async def _mend(self, key: str, group: Group) -> None:
        if group.engine and group.engine.ended is not None:
            steady = time.monotonic() - group.engine.started > _STEADY_S
            group.crashes = 1 if steady else group.crashes + 1
            group.retry_at = time.monotonic() + min(30.0, 0.25 * 2 ** (group.crashes - 1))
            group.reason = f"the engine ended by itself ({group.engine.ended}); starting it again"
            _say(f"{key}: {group.reason}")
            group.engine = None
        if group.coming:
            self._judge(key, group, group.coming)
        if not self._may_leave(key, group):
            return
        if not group.wanted:
            for engine in (group.engine, group.coming):
                if engine:
                    self._retire(engine)
            del self.groups[key]
        elif group.due:
            await self._start(key, group)

    async def _start(self, key: str, group: Group) -> None:
        coming = EngineProcess(group.wanted)
        try:
            await coming.start(self.folder, self.settings.threads, self.client)
        except OSError as error:  # its Bento is gone, or the machine has no room for a process
            group.failed(f"the engine cannot be started: {error}")
            _say(f"{key}: {group.reason}")
            return
        group.coming = coming
        _say(f"{key}: engine {coming.pid} starting for {_names(group.wanted)}")

    def _may_leave(self, key: str, group: Group) -> bool:
        """Whether the projects that move from this group to another already answer there."""
        for project in group.engine.loaded if group.engine else ():
            entry = self.desired.projects.get(project)
            if entry and entry.release.key != key:
                other = self.groups[entry.release.key].engine
                if other is None or project not in other.loaded:
                    return False
        return True

    def _judge(self, key: str, group: Group, coming: EngineProcess) -> None:
        """Switch to a successor that is healthy; give up one that is not."""
        if coming.releases != group.wanted:
            verdict = "is no longer wanted"
        elif coming.ended is not None:
            verdict = f"ended with code {coming.ended} before it was healthy; see {self.folder.log}"
        elif not coming.up:
            late = time.monotonic() - coming.started > HEALTHY_WITHIN_S
            verdict = f"was not healthy within {HEALTHY_WITHIN_S:.0f} s" if late else None
            if verdict is None:
                return
        elif coming.problems and (group.engine or not coming.loaded):
            # A sound predecessor goes on rather than lose one of its projects.
            verdict = "; ".join(f"{p}: {why}" for p, why in sorted(coming.problems.items()))
        else:
            verdict = None
        group.coming = None
        if verdict is None:
            _say(f"{key}: engine {coming.pid} answers for {_names(group.wanted)}")
            old, group.engine = group.engine, coming
            group.reason = "; ".join(f"{p}: {why}" for p, why in sorted(coming.problems.items()))
            group.crashes = 0 if old else group.crashes
            if old:
                self._retire(old)
            return
        _say(f"{key}: engine {coming.pid} {verdict}")
        if coming.releases == group.wanted:
            group.failed(verdict)
        self._retire(coming)

    def _retire(self, engine: EngineProcess) -> None:
        task = asyncio.create_task(engine.retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def status(self) -> dict[str, dict[str, Any]]:
        """Each wanted project: the release asked for, the one that answers, how it stands and why."""
        out: dict[str, dict[str, Any]] = {}
        for project, entry in sorted(self.desired.projects.items()):
            group = self.groups.get(entry.release.key, Group())
            state, reason = "starting", group.reason
            if group.engine and entry.release in group.engine.releases and project in group.engine.loaded:
                state, reason = "running", ""
            elif group.engine and entry.release in group.engine.releases:
                state, reason = "failed", group.engine.problems.get(project, group.reason)
            elif group.refused_attempt == group.attempt and not group.coming:
                state = "failed"
            out[project] = {
                "release": entry.release.release,
                "serving": entry.release.release if state == "running" else self._answering(project),
                "state": state,
                "reason": reason,
            }
        return out

    def _answering(self, project: str) -> str | None:
        return next((r for e in self.serving() if (r := e.release_of(project))), None)

    def _state(self) -> dict[str, Any]:
        projects = self.status()
        states = {p["state"] for p in projects.values()}
        engines = [{"pid": e.pid, "projects": sorted(e.loaded)} for e in self.serving()]
        return {
            "state": next((s for s in ("failed", "starting") if s in states), "running"),
            "attempt": self.desired.attempt,
            "projects": projects,
            "releases": {p: s["serving"] for p, s in projects.items() if s["serving"]},
            "engines": engines,
            "engine_pid": engines[0]["pid"] if engines else None,
            "supervisor_pid": os.getpid(),
            "port": self.settings.port(self.folder.environment),
            "reason": "; ".join(f"{p}: {s['reason']}" for p, s in projects.items() if s["reason"]),
        }

    def _write(self) -> None:
        state = self._state()
        if state != self._written:
            if state["state"] != self._written.get("state"):
                self._since = now()
            self.folder.write("state.json", {**state, "since": self._since})
            self._written = state


def _names(releases: tuple[ReleaseToServe, ...]) -> str:
    return ", ".join(f"{r.project} {r.release[:12]}" for r in releases)


def _say(message: str) -> None:
    print(f"{now()} {message}", flush=True)


async def _serve(settings: Settings, folder: Folder, listener: socket.socket) -> None:
    # Shorter than the engines' keep-alive, so that no request meets a connection being closed.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=10)
    async with httpx.AsyncClient(
        limits=limits, timeout=httpx.Timeout(600, connect=5), trust_env=False
    ) as client:
        supervisor = Supervisor(settings, folder, client)
        gateway = Gateway(client, supervisor.serving, supervisor.status)
        config = uvicorn.Config(
            gateway.application(), log_level="warning", timeout_graceful_shutdown=10, timeout_keep_alive=75
        )
        loop = asyncio.create_task(supervisor.run())
        server = uvicorn.Server(config)
        loop.add_done_callback(lambda _: setattr(server, "should_exit", True))
        # uvicorn raises the signals it caught once more when it is done; by then they mean nothing.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        try:
            await server.serve(sockets=[listener])
        finally:
            loop.cancel()
            (ended,) = await asyncio.gather(loop, return_exceptions=True)
            await supervisor.close()
        if not isinstance(ended, asyncio.CancelledError):
            raise ended if isinstance(ended, BaseException) else RuntimeError("the watch ended")


def _detach() -> None:
    """Leave the caller: its own session, adopted by init, so that nobody is left a zombie to reap."""
    if os.fork():
        os._exit(0)
    os.setsid()


def main(argv: list[str] | None = None) -> int:
    """Supervise one environment until SIGTERM. Exit 0 also when another supervisor already does."""
    parser = argparse.ArgumentParser(prog="python -m ftaas_pipelines.serving.supervisor")
    parser.add_argument("--environment", required=True, choices=all_settings.ENVIRONMENTS)
    parser.add_argument("--detach", action="store_true", help="go to the background")
    options = parser.parse_args(argv)
    settings = all_settings.load()
    folder = Folder(settings.home, options.environment)
    if options.detach:
        _detach()
    held = folder.hold()
    if held is None:
        return 0
    for left in folder.engines.glob("*.json"):  # by a supervisor that was killed
        left.unlink()
    try:
        listener = socket.create_server(("127.0.0.1", settings.port(options.environment)), backlog=512)
    except OSError as error:
        _say(f"port {settings.port(options.environment)}: {error.strerror}")
        return 2
    # asyncio does this only for sockets that name their protocol; without it an answer's head and body
    # wait 40 ms for each other (Nagle against delayed acknowledgement). Accepted sockets inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _say(f"supervisor {os.getpid()} on port {settings.port(options.environment)}")
    with listener:
        asyncio.run(_serve(settings, folder, listener))
    return 0


if __name__ == "__main__":
    sys.exit(main())
