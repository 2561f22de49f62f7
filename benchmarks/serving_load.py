"""Asking a chat endpoint from many clients at once, and what that took. Used by `benchmarks.serving`."""

import asyncio
import http.client
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp


@dataclass
class Load:
    """What a load came to.

    Attributes:
        seconds: latency of each answered request.
        around_s: of each, what was spent around generating (where the server says how long that took).
        bodies: answers by the request's number.
        failed: what went wrong, a line each.
    """

    wall_s: float = 0.0
    seconds: list[float] = field(default_factory=list[float])
    around_s: list[float] = field(default_factory=list[float])
    first_s: list[float] = field(default_factory=list[float])
    bodies: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])
    failed: list[str] = field(default_factory=list[str])

    @property
    def per_s(self) -> float:
        return len(self.seconds) / self.wall_s

    def at(self, share: float, of: Sequence[float] | None = None) -> float:
        """A percentile of the latencies (or of others), seconds."""
        values = sorted(self.seconds if of is None else of)
        return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


Body = Callable[[int], dict[str, Any]]


def ask(
    url: str,
    body: Body,
    *,
    requests: int = 0,
    seconds: float = 0.0,
    clients: int = 1,
    headers: dict[str, str] | None = None,
    during: Callable[[], Any] | None = None,
    keep: bool = True,
) -> Load:
    """Put `requests` questions, or as many as fit into `seconds`, from so many clients at once.

    Args:
        body: the request of a number.
        during: run in a thread while the load lasts.
        keep: the answers' bodies.
    """
    return asyncio.run(_ask(url, body, requests, seconds, clients, headers or {}, during, keep))


def ask_alone(url: str, body: Body, requests: int) -> Load:
    """One client with one connection, one question behind the other.

    By the standard library: aiohttp's client takes half a millisecond of each, which is not the endpoint's.
    """
    load, parts = Load(), urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
    began = time.monotonic()
    for number in range(requests):
        content, at = json.dumps(body(number)), time.monotonic()
        connection.request("POST", parts.path, content, {"content-type": "application/json"})
        answer = connection.getresponse()
        read = answer.read()
        took = time.monotonic() - at
        if answer.status != 200:
            load.failed.append(f"{answer.status}: {read[:200]!r}")
            continue
        load.seconds.append(took)
        load.around_s.append(took - float(answer.headers["server-timing"].rpartition("dur=")[2]) / 1000)
    load.wall_s = time.monotonic() - began
    connection.close()
    return load


async def _ask(
    url: str,
    body: Body,
    requests: int,
    seconds: float,
    clients: int,
    headers: dict[str, str],
    during: Callable[[], Any] | None,
    keep: bool,
) -> Load:
    load, numbers = Load(), iter(range(requests or 1 << 60))
    until = time.monotonic() + seconds if seconds else float("inf")
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:

        async def client() -> None:
            while time.monotonic() < until and (number := next(numbers, None)) is not None:
                await _one(session, url, number, body(number), load, keep)

        began = time.monotonic()
        other = asyncio.ensure_future(asyncio.to_thread(during)) if during else None
        await asyncio.gather(*(client() for _ in range(clients)))
        load.wall_s = time.monotonic() - began
        if other:
            await other
    return load


async def _one(
    session: aiohttp.ClientSession, url: str, number: int, body: dict[str, Any], load: Load, keep: bool
) -> None:
    began = time.monotonic()
    try:
        async with session.post(url, json=body) as answer:
            if answer.status != 200:
                load.failed.append(f"{answer.status}: {(await answer.text())[:200]}")
                return
            if body.get("stream"):
                await _first(answer, began, load)
            else:
                read = await answer.read()
                if keep:
                    load.bodies[number] = json.loads(read)
            took = time.monotonic() - began
            load.seconds.append(took)
            if timing := answer.headers.get("server-timing"):
                load.around_s.append(took - float(timing.rpartition("dur=")[2]) / 1000)
    except (aiohttp.ClientError, TimeoutError) as error:
        load.failed.append(f"{type(error).__name__}: {error}")


async def _first(answer: aiohttp.ClientResponse, began: float, load: Load) -> None:
    """Read a stream; note when its first text came."""
    seen = False
    async for line in answer.content:
        if not seen and b'"content":"' in line and b'"content":""' not in line:
            load.first_s.append(time.monotonic() - began)
            seen = True
