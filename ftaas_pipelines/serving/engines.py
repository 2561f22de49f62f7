"""What the supervisor keeps and the gateway asks: a process of ours, or a server of somebody else's."""

import abc
import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import aiohttp
import httpx

from ftaas_pipelines.serving.desired import Folder, ReleaseToServe
from ftaas_pipelines.serving.upstream import Breaker
from ftaas_pipelines.settings import Settings

DRAIN_S = 60.0


class AnsweringEngine(abc.ABC):
    """Something that answers for releases, and how it fares.

    Attributes:
        releases: what it was told to load, by name.
        loaded: names of the releases that it answers for; empty until it is up.
        problems: name to why it was not loaded.
        in_flight: requests that it is answering now, by name.
        url: where it is asked.
        headers: sent along with every request.
        timeout: of a request.
        attempts: how often a request is sent where it was not taken.
        pid: its process; None where it is none of ours.
        ours: whether it speaks as our engines do: metrics, timings, refusals that a caller may see.
    """

    pid: int | None = None
    timeout: aiohttp.ClientTimeout | None = None
    attempts = 1
    ours = True

    def __init__(self, releases: Sequence[ReleaseToServe]):
        self.releases = {r.release: r for r in releases}
        self.loaded: set[str] = set()
        self.problems: dict[str, str] = {}
        self.in_flight: Counter[str] = Counter()
        self.started = time.monotonic()
        self.url = ""
        self.headers: dict[str, str] = {}
        self.breaker = Breaker()

    def answers(self, release: ReleaseToServe) -> bool:
        return release.release in self.loaded and self.ended is None

    @property
    def up(self) -> bool:
        """Whether it has said what it loaded, be it nothing."""
        return bool(self.loaded or self.problems) and self.ended is None

    @property
    @abc.abstractmethod
    def ended(self) -> int | None:
        """Its exit code, or None while it lives."""

    @abc.abstractmethod
    async def start(self, folder: Folder, settings: Settings, client: httpx.AsyncClient) -> None:
        """Begin to have `releases` loaded; `up` says when that is known."""

    @abc.abstractmethod
    async def tell(self, releases: Sequence[ReleaseToServe], client: httpx.AsyncClient) -> None:
        """Have exactly these loaded, while it goes on answering. `loaded` and `problems` say how that went.

        Raises:
            httpx.HTTPError: it does not answer; what it has loaded is not known.
        """

    @abc.abstractmethod
    async def end(self) -> None:
        """Answer no more. Returns when it is gone."""

    def asked(self, release: ReleaseToServe, body: dict[str, Any]) -> dict[str, Any]:
        """A request's body as this engine reads it."""
        return {**body, "model": release.release}

    async def drained(self, names: Iterable[str] | None = None) -> None:
        """Wait until it has answered what it is answering, for these releases or all; at most 60 s."""
        deadline = time.monotonic() + DRAIN_S
        of = None if names is None else set(names)
        while self.ended is None and time.monotonic() < deadline:
            if not any(n for name, n in self.in_flight.items() if of is None or name in of):
                return
            await asyncio.sleep(0.05)

    async def retire(self) -> None:
        """Let it finish what it is answering, then end it."""
        await self.drained()
        await self.end()
