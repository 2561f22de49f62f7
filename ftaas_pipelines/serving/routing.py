"""Which release answers a request, and where it lies."""

import hashlib
import hmac
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ftaas_pipelines.serving.desired import Desired, ReleaseToServe, Trial
from ftaas_pipelines.serving.engines import AnsweringEngine
from ftaas_pipelines.serving.openai_shapes import RequestRefused, unknown_model


@dataclass(frozen=True)
class Target:
    """A release that can answer now.

    Attributes:
        variant: "" for the one that serves; `canary`, `a`, `b` or `shadow` while another is tried.
        shadow: who answers the same again, for the log alone.
        unit: pseudonym of whose requests stay with one variant; empty outside an A/B test.
    """

    release: ReleaseToServe
    engine: AnsweringEngine
    variant: str = ""
    shadow: "Target | None" = None
    unit: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """Who answers; our own engines say so themselves."""
        return {"adapter_digest": self.release.adapter, "release": self.release.release}

    def begun(self) -> Callable[[], None]:
        """Count a request as in flight. Call the result when it is over."""
        name, in_flight = self.release.release, self.engine.in_flight
        in_flight[name] += 1

        def over() -> None:
            in_flight[name] -= 1

        return over


class Watched(Protocol):
    """What routes are chosen from: the supervisor."""

    desired: Desired

    def target(self, project: str) -> tuple[AnsweringEngine, ReleaseToServe] | None: ...

    def trial(self, project: str) -> tuple[AnsweringEngine, Trial] | None: ...

    def status(self) -> dict[str, dict[str, str]]: ...


class Routes:
    """Chooses among what the supervisor has running."""

    def __init__(self, supervisor: Watched, draw: Callable[[], float] = random.random):
        self._supervisor, self._draw = supervisor, draw

    @property
    def projects(self) -> list[str]:
        return sorted(self._supervisor.desired.projects)

    def require_known(self, project: str) -> None:
        """Raises RequestRefused: 404, no such project is deployed here."""
        if project not in self._supervisor.desired.projects:
            raise unknown_model(project[:100], self.projects)

    def max_new_tokens(self, project: str) -> int:
        return self._supervisor.desired.projects[project].release.max_new_tokens

    def choose(self, project: str, key: str) -> Target:
        """The release that answers.

        Args:
            key: whose requests stay with one variant of an A/B test.

        Raises:
            RequestRefused: 503, nothing can answer for this project now.
        """
        found = self._supervisor.target(project)
        if found is None:
            known = self._supervisor.status().get(project, {"state": "stopped", "reason": ""})
            raise not_ready(
                f"'{project}' is {known['state']}" + (f": {known['reason']}" if known["reason"] else "")
            )
        engine, release = found
        tried = self._supervisor.trial(project)
        if tried is None:
            return Target(release, engine)
        other, trial = tried
        share = trial.percent / 100
        if trial.kind == "ab":
            unit = pseudonym(trial, key)
            if bucket(project, trial.release.release, key) < share:
                return Target(trial.release, other, "b", unit=unit)
            return Target(release, engine, "a", unit=unit)
        drawn = self._draw() < share
        if trial.kind == "canary":
            return Target(trial.release, other, "canary") if drawn else Target(release, engine)
        shadow = Target(trial.release, other, "shadow") if drawn else None
        return Target(release, engine, shadow=shadow)


def bucket(project: str, release: str, key: str) -> float:
    """Where a caller falls in a test, in [0, 1): the same for ever, and another in every test."""
    digest = hashlib.sha256(f"{project}\0{release}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def pseudonym(trial: Trial, key: str) -> str:
    """A caller's name in the log of one A/B test. Its key goes with the trial: then nobody can tell whose."""
    return hmac.new(trial.salt.encode(), key.encode(), hashlib.sha256).hexdigest()[:16]


def not_ready(message: str) -> RequestRefused:
    return RequestRefused(503, message, "not_ready", None, {"Retry-After": "2"})
