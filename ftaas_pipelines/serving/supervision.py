"""The loop that makes what is served equal to what should be.

It starts an engine per (base model, runtime) from what desired.json says, tells a living one what else to
load and what to forget, and starts what crashed again, ever more slowly. A release is loaded when the
ledger lets it (`verified.py`) and answers when the engine has it; until then the one before it does. State
goes to state.json.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from ftaas_pipelines.serving import smoke
from ftaas_pipelines.serving.desired import Desired, Folder, ReleaseToServe, Trial
from ftaas_pipelines.serving.engine_process import EngineProcess
from ftaas_pipelines.serving.engines import DRAIN_S, AnsweringEngine
from ftaas_pipelines.serving.upstream_server import UpstreamServer
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import now

HEALTHY_WITHIN_S = 180.0
TICK_S = 0.1
_log = logging.getLogger("ftaas.supervisor")
_WRITE_AGAIN_S = 1.0
_STEADY_S = 60.0  # an engine that ran so long did not crash at its start: the back-off begins anew


Verify = Callable[[ReleaseToServe], str | None]


@dataclass
class Group:
    """The engine of one (base model, runtime): the process that answers, or the one that will."""

    wanted: tuple[ReleaseToServe, ...] = ()
    attempt: int = 0
    engine: AnsweringEngine | None = None
    coming: AnsweringEngine | None = None
    telling: asyncio.Task[None] | None = None
    reason: str = ""
    told: frozenset[str] | None = None  # releases that the engine was last told to have
    refused: dict[str, str] = field(
        default_factory=dict[str, str]
    )  # of those, what the ledger does not allow
    tried_attempt: int = -1  # the attempt that its last word is about; the same is not tried again by itself
    crashes: int = 0
    retry_at: float = 0.0
    leaving: dict[str, float] = field(default_factory=dict[str, float])  # release to when it was replaced

    def failed(self, reason: str) -> None:
        """Note an engine that did not come up, or did not take what it was told."""
        self.reason = reason
        self.crashes += 1
        self.retry_at = time.monotonic() + min(30.0, 0.5 * 2**self.crashes)

    @property
    def asked_again(self) -> bool:
        return self.tried_attempt != self.attempt


@dataclass
class Supervisor:
    """The loop that makes what is equal to what should be.

    Args:
        verify: why the ledger does not let a release serve here; None: it does.
        url: where the environment is asked.
    """

    settings: Settings
    folder: Folder
    client: httpx.AsyncClient
    verify: Verify
    url: str = ""
    groups: dict[str, Group] = field(default_factory=dict[str, Group])
    desired: Desired = field(default_factory=Desired)
    _answering: dict[str, ReleaseToServe] = field(default_factory=dict[str, ReleaseToServe])
    _proven: set[str] = field(default_factory=set[str])  # releases that gave the smoke questions' answers
    _faults: dict[str, tuple[int, str]] = field(default_factory=dict[str, tuple[int, str]])
    _asking: dict[str, asyncio.Task[None]] = field(default_factory=dict[str, asyncio.Task[None]])
    _retiring: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])
    _written: dict[str, Any] = field(default_factory=dict[str, Any])
    _write_at: float = 0.0
    _since: str = field(default_factory=now)
    _stamp: tuple[int, int] | None = None

    def engines(self) -> list[AnsweringEngine]:
        return [g.engine for _, g in sorted(self.groups.items()) if g.engine and g.engine.ended is None]

    def target(self, project: str) -> tuple[AnsweringEngine, ReleaseToServe] | None:
        """Who answers for a project with which release: the wanted one, and until it can, the one before."""
        entry = self.desired.projects.get(project)
        if entry is None:
            return None
        for release in (entry.release, self._answering.get(project)):
            if release and (engine := self.engine_of(release)):
                self._answering[project] = release
                return engine, release
        return None

    def trial(self, project: str) -> tuple[AnsweringEngine, Trial] | None:
        """The release that is tried beside, where it can answer."""
        entry = self.desired.projects.get(project)
        if entry is None or entry.trial is None or not (engine := self.engine_of(entry.trial.release)):
            return None
        return engine, entry.trial

    def engine_of(self, release: ReleaseToServe) -> AnsweringEngine | None:
        """The engine that answers for a release: it has it loaded, and the smoke questions went well."""
        return self._holder(release) if release.release in self._proven else None

    def _holder(self, release: ReleaseToServe) -> AnsweringEngine | None:
        """The engine that has a release loaded."""
        group = self.groups.get(release.key)
        return group.engine if group and group.engine and group.engine.answers(release) else None

    def _prove(self) -> None:
        """Have what is loaded and new asked its smoke questions."""
        for release in [r for entry in self.desired.projects.values() for r in entry.releases]:
            name, engine = release.release, self._holder(release)
            tried = self._faults.get(name, (-1, ""))[0] == self.desired.attempt
            if engine and name not in self._proven and name not in self._asking and not tried:
                self._asking[name] = asyncio.create_task(self._ask(engine, release, self.desired.attempt))

    async def _ask(self, engine: AnsweringEngine, release: ReleaseToServe, attempt: int) -> None:
        name = release.release
        try:
            questions = smoke.read(self.folder, name)
            fault = await smoke.fault(engine, release, questions, self.client)
        except (OSError, ValueError) as error:
            fault = f"the smoke questions cannot be read: {error}"
        del self._asking[name]
        if fault is None:
            self._proven.add(name)
        elif engine.answers(release):  # else it went away meanwhile, and the next one is asked
            self._faults[name] = (attempt, fault)
            say(f"{release.project} {name[:12]} does not answer as it should: {fault}", logging.WARNING)

    async def run(self) -> None:
        """Watch and mend until cancelled."""
        while True:
            self._read()
            for key in sorted(self.groups):
                await self._mend(key, self.groups[key])
            self._prove()
            self._write()
            await asyncio.sleep(TICK_S)

    async def close(self) -> None:
        """End every engine; say so."""
        telling = [*(g.telling for g in self.groups.values() if g.telling), *self._asking.values()]
        for task in telling:
            task.cancel()
        engines = [e for g in self.groups.values() for e in (g.engine, g.coming) if e]
        await asyncio.gather(*(e.end() for e in engines), *self._retiring)
        await asyncio.gather(*telling, return_exceptions=True)
        self._put({**self._state(), "state": "stopped", "engine_pid": None})

    def _read(self) -> None:
        stamp = self.folder.stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            desired = self.desired = self.folder.desired()
        except ValueError as error:
            say(f"desired.json is not understood, what was wanted before stays: {error}")
            return
        wanted: dict[str, list[ReleaseToServe]] = {key: [] for key in self.groups}
        for _, entry in sorted(desired.projects.items()):
            for release in entry.releases:
                wanted.setdefault(release.key, []).append(release)
        for project in self._answering.keys() - desired.projects.keys():
            del self._answering[project]
        known = [*(r for releases in wanted.values() for r in releases), *self._answering.values()]
        self._proven &= {release.release for release in known}  # what is deployed anew is asked anew
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
            say(f"{key}: {group.reason}", logging.WARNING)
            group.engine = None
        if group.coming:
            self._judge(key, group, group.coming)
        if group.engine is None:
            await self._without_engine(key, group)
        elif group.telling is None:
            self._with_engine(key, group, group.engine)
        elif group.telling.done():
            group.telling = None

    async def _without_engine(self, key: str, group: Group) -> None:
        if not group.wanted:
            if group.coming:
                self._retire(group.coming)
            del self.groups[key]
        elif group.coming is None and time.monotonic() >= group.retry_at:
            await self._start(key, group)

    def _with_engine(self, key: str, group: Group, engine: AnsweringEngine) -> None:
        """Tell a living engine what to load and what to forget; end it when nothing is left."""
        have = [*group.wanted, *self._still_needed(group, engine)]
        again = group.asked_again and bool(engine.problems or group.refused)
        if not have:
            self._retire(engine)
            del self.groups[key]
        elif (again or group.told != _digests(have)) and time.monotonic() >= group.retry_at:
            group.telling = asyncio.create_task(self._tell(key, group, engine, have))

    def _still_needed(self, group: Group, engine: AnsweringEngine) -> list[ReleaseToServe]:
        """Releases wanted no more that stay for now: they are answering, or their successor cannot yet."""
        found: list[ReleaseToServe] = []
        for name, release in engine.releases.items():
            if release in group.wanted:
                group.leaving.pop(name, None)
                continue
            serving = self.target(release.project)
            if serving and serving[1] == release:
                found.append(release)
                continue
            since = group.leaving.setdefault(name, time.monotonic())
            if engine.in_flight[name] and time.monotonic() - since < DRAIN_S:
                found.append(release)
        return found

    async def _allowed(self, group: Group, releases: Sequence[ReleaseToServe]) -> list[ReleaseToServe]:
        """Those that the ledger lets serve, and those that answer already; why not the others is noted."""
        group.tried_attempt, group.told, group.refused = group.attempt, _digests(releases), {}
        for release in releases:
            if group.engine and group.engine.answers(release):
                continue
            try:
                why = await asyncio.to_thread(self.verify, release)
            except Exception as error:  # nothing is known, so nothing is loaded
                why = f"the ledger cannot be asked: {error}"
            if why:
                group.refused[release.release] = why
                say(f"{release.project} {release.release[:12]} is not loaded: {why}", logging.WARNING)
        return [r for r in releases if r.release not in group.refused]

    async def _start(self, key: str, group: Group) -> None:
        allowed = await self._allowed(group, group.wanted)
        if not allowed:
            group.failed("; ".join(group.refused.values()))
            return
        try:
            coming = _engine_for(allowed)
            await coming.start(self.folder, self.settings, self.client)
        except OSError as error:  # its Bento is gone, or the machine has no room for a process
            group.failed(f"the engine cannot be started: {error}")
            say(f"{key}: {group.reason}")
            return
        group.coming = coming
        say(f"{key}: engine {coming.pid} starting for {_names(allowed)}")

    async def _tell(
        self, key: str, group: Group, engine: AnsweringEngine, releases: list[ReleaseToServe]
    ) -> None:
        allowed = await self._allowed(group, releases)
        if not allowed:
            return
        try:
            await engine.tell(allowed, self.client)
        except httpx.HTTPError as error:
            group.told = None
            group.failed(f"the engine did not take what it was told ({type(error).__name__})")
            say(f"{key}: engine {engine.pid}: {group.reason}")
            return
        group.reason = _problems(engine)
        say(
            f"{key}: engine {engine.pid} has {_names(allowed)}"
            + (f", but {r}" if (r := group.reason) else "")
        )

    def _judge(self, key: str, group: Group, coming: AnsweringEngine) -> None:
        """Take an engine that is healthy; give up one that is not."""
        wanted = {r.release for r in group.wanted} - set(group.refused)
        if set(coming.releases) != wanted:
            verdict = "is no longer wanted"
        elif coming.ended is not None:
            verdict = f"ended with code {coming.ended} before it was healthy; see {self.folder.log}"
        elif not coming.up:
            late = time.monotonic() - coming.started > HEALTHY_WITHIN_S
            verdict = f"was not healthy within {HEALTHY_WITHIN_S:.0f} s" if late else None
            if verdict is None:
                return
        elif not coming.loaded:
            verdict = _problems(coming)
        else:
            verdict = None
        group.coming = None
        if verdict is None:
            say(f"{key}: engine {coming.pid} answers for {_names(list(coming.releases.values()))}")
            group.engine, group.reason = coming, _problems(coming)
            return
        say(f"{key}: engine {coming.pid} {verdict}", logging.WARNING)
        if set(coming.releases) == wanted:
            group.failed(verdict)
        self._retire(coming)

    def _retire(self, engine: AnsweringEngine) -> None:
        task = asyncio.create_task(engine.retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def status(self) -> dict[str, dict[str, Any]]:
        """Each wanted project: the release asked for, the one that answers, how it stands and why."""
        out: dict[str, dict[str, Any]] = {}
        for project, entry in sorted(self.desired.projects.items()):
            release, group = entry.release, self.groups.get(entry.release.key, Group())
            found = self.target(project)
            why = self._why_not(release)
            state, reason = "starting", group.reason
            if found and found[1] == release:
                state, reason = "running", ""
            elif why and not group.asked_again:
                state, reason = "failed", why
            elif group.crashes and not group.coming and not group.engine and not group.asked_again:
                state = "failed"
            out[project] = {
                "release": release.release,
                "serving": found[1].release if found else None,
                "state": state,
                "reason": reason,
            }
            if entry.trial:
                out[project]["trial"] = self._trial_status(entry.trial)
        return out

    def _why_not(self, release: ReleaseToServe) -> str | None:
        """Why a release does not answer; None: nothing speaks against it (yet)."""
        group, name = self.groups.get(release.key, Group()), release.release
        attempt, fault = self._faults.get(name, (-1, ""))
        if name in group.refused:
            return group.refused[name]
        if group.engine and name in group.engine.problems:
            return group.engine.problems[name]
        return fault if attempt == self.desired.attempt else None

    def _trial_status(self, trial: Trial) -> dict[str, Any]:
        release = trial.release
        why = self._why_not(release)
        state = "running" if self.engine_of(release) else "failed" if why else "starting"
        return {
            "release": release.release,
            "kind": trial.kind,
            "percent": trial.percent,
            "state": state,
            "reason": why or "",
        }

    def _state(self) -> dict[str, Any]:
        projects = self.status()
        states = {p["state"] for p in projects.values()}
        engines = [
            {"pid": e.pid, "projects": sorted({_project(e, name) for name in e.loaded})}
            for e in self.engines()
        ]
        return {
            "state": next((s for s in ("failed", "starting") if s in states), "running"),
            "attempt": self.desired.attempt,
            "projects": projects,
            "releases": {p: s["serving"] for p, s in projects.items() if s["serving"]},
            "engines": engines,
            "engine_pid": engines[0]["pid"] if engines else None,
            "supervisor_pid": os.getpid(),
            "port": self.settings.port(self.folder.environment),
            "url": self.url,
            "reason": "; ".join(f"{p}: {s['reason']}" for p, s in projects.items() if s["reason"]),
        }

    def _write(self) -> None:
        state = self._state()
        if state != self._written and time.monotonic() >= self._write_at:
            if state["state"] != self._written.get("state"):
                self._since = now()
            if self._put({**state, "since": self._since}):
                self._written = state

    def _put(self, state: dict[str, Any]) -> bool:
        """Write the state down. A disk that is full ends nothing: it is tried again in a while."""
        try:
            self.folder.write("state.json", state)
        except OSError as error:
            self._write_at = time.monotonic() + _WRITE_AGAIN_S
            say(f"the state cannot be written: {error.strerror}", logging.ERROR)
            return False
        return True


def _engine_for(releases: Sequence[ReleaseToServe]) -> AnsweringEngine:
    """What answers for releases that share one: a process of our own, or the server that they name."""
    return UpstreamServer(releases) if releases[0].upstream else EngineProcess(releases)


def _names(releases: Sequence[ReleaseToServe]) -> str:
    return ", ".join(f"{r.project} {r.release[:12]}" for r in releases)


def _digests(releases: Sequence[ReleaseToServe]) -> frozenset[str]:
    return frozenset(r.release for r in releases)


def _problems(engine: AnsweringEngine) -> str:
    return "; ".join(f"{_project(engine, n)}: {why}" for n, why in sorted(engine.problems.items()))


def _project(engine: AnsweringEngine, name: str) -> str:
    found = engine.releases.get(name)
    return found.project if found else name


def say(message: str, level: int = logging.INFO) -> None:
    """A line in the log of what the supervisor does."""
    _log.log(level, "%s", message)
