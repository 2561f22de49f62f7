"""The folder of one environment's deployment: what should be served, and what is.

deployments/<environment>/desired.json     what should be served; written here, under `changing()`
deployments/<environment>/state.json       what is; written by the supervisor alone
deployments/<environment>/rollout.json     what the rules say; written by the watch beside the supervisor
deployments/<environment>/supervisor.lock  held by the supervisor while it lives
deployments/<environment>/engines/         the state file of each engine
deployments/<environment>/answers/         the inference log
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ftaas_pipelines.projects.answers import AnswerPolicy
from ftaas_pipelines.projects.guard import GuardRules
from ftaas_pipelines.projects.rollout import Rollout
from ftaas_pipelines.projects.upstream import Upstream
from ftaas_pipelines.serving.runtime import ServedRelease

HISTORY = 20


class ReleaseToServe(BaseModel):
    """A release with all that an engine needs to serve it; digests are full, paths absolute.

    `bento_path` is the folder that `bentoml serve` takes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    project: str
    release: str
    bento: str
    bento_path: str
    adapter: str
    adapter_path: str
    base: str
    base_path: str
    runtime: str
    family: str
    max_new_tokens: int
    upstream: Upstream | None = None

    @property
    def key(self) -> str:
        """Releases with the same key share one engine."""
        if self.upstream:
            return "upstream-" + hashlib.sha256(self.upstream.model_dump_json().encode()).hexdigest()[:12]
        return f"{self.base[:12]}-{self.runtime[:12]}"

    def served(self) -> ServedRelease:
        names = ServedRelease.__dataclass_fields__
        return ServedRelease(**{name: getattr(self, name) for name in names})


class Terms(BaseModel):
    """What a project's answers are held to: taken from policy and project when it is deployed."""

    guard: GuardRules = GuardRules()
    answers: AnswerPolicy = AnswerPolicy()
    rollout: Rollout = Rollout()


class Trial(BaseModel):
    """Another release beside the one that serves.

    `canary`: answers `percent` of the requests. `ab`: answers `percent` of the callers, always the same ones.
    `shadow`: answers `percent` of the requests again, for nobody but the log.

    Attributes:
        since: UTC s when it was asked for.
        rollout: when it ends or is promoted by rule; as the project said when it began.
        salt: what the pseudonyms of an A/B test's callers are made with; gone with the trial.
    """

    model_config = ConfigDict(extra="forbid")

    release: ReleaseToServe
    kind: Literal["canary", "ab", "shadow"]
    percent: float = Field(gt=0, le=100)
    since: float = 0.0
    rollout: Rollout = Rollout()
    salt: str = Field(default_factory=lambda: secrets.token_hex(16))


class Wanted(BaseModel):
    """One project's place in an environment. `history` holds what was served before, newest last.

    `since`: UTC s of the last switch or `unpin`; rules judge what came after it.
    """

    release: ReleaseToServe
    pinned: bool = False
    history: list[ReleaseToServe] = []
    terms: Terms = Terms()
    trial: Trial | None = None
    since: float = 0.0

    @property
    def releases(self) -> list[ReleaseToServe]:
        """All that must be loaded for it."""
        return [self.release, *([self.trial.release] if self.trial else [])]

    @property
    def ruled(self) -> bool:
        """Whether `serving.rollout` says something of it."""
        return self.terms.rollout.on or bool(self.trial and self.trial.rollout.on)


class Desired(BaseModel):
    """`attempt` grows with every change, so that a waiting caller knows its own was seen."""

    attempt: int = 0
    projects: dict[str, Wanted] = {}


class Folder:
    """The files of one environment."""

    def __init__(self, home: Path, environment: str):
        self.environment = environment
        self.path = home.resolve() / "deployments" / environment

    @property
    def engines(self) -> Path:
        return self.path / "engines"

    @property
    def answers(self) -> Path:
        return self.path / "answers"

    @property
    def log(self) -> Path:
        return self.path / "supervisor.log"

    def desired(self) -> Desired:
        file = self.path / "desired.json"
        return Desired.model_validate_json(file.read_bytes()) if file.exists() else Desired()

    def stamp(self) -> tuple[int, int] | None:
        """Changes whenever desired.json does."""
        try:
            stat = (self.path / "desired.json").stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    @contextlib.contextmanager
    def changing(self) -> Iterator[Desired]:
        """Change what should be served: alone, and whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "desired.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            desired = self.desired()
            before = desired.model_copy(deep=True)
            yield desired
            if desired != before:
                desired.attempt += 1
                self.write("desired.json", desired.model_dump(mode="json"))

    def state(self) -> dict[str, Any]:
        """What the supervisor last wrote; `{"state": "stopped"}` when none runs."""
        if self.supervisor() is None:
            return {"state": "stopped", "projects": {}}
        file = self.path / "state.json"
        return json.loads(file.read_text("utf-8")) if file.exists() else {"state": "starting", "projects": {}}

    def ruled(self) -> dict[str, dict[str, Any]]:
        """What the rules of each project said last; written by the watch (`rollout/watch.py`)."""
        file = self.path / "rollout.json"
        if self.supervisor() is None or not file.exists():
            return {}
        return json.loads(file.read_text("utf-8"))["projects"]

    def write(self, name: str, value: Any) -> None:
        target = self.path / name
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            temporary.replace(target)
        except OSError:  # the disk is full: nothing of it stays
            temporary.unlink(missing_ok=True)
            raise

    def hold(self) -> int | None:
        """Become the environment's one supervisor: the lock's descriptor, or None if there is one."""
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / "supervisor.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        return descriptor

    def supervisor(self) -> int | None:
        """Process id of the living supervisor. The lock says so, never a stale file."""
        try:
            descriptor = os.open(self.path / "supervisor.lock", os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(os.pread(descriptor, 32, 0) or b"0") or None
        finally:
            os.close(descriptor)
        return None
