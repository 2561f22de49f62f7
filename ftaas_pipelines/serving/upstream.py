"""Asking an engine over HTTP: ours, or any server that speaks OpenAI's API.

An answer is read whole or as events; hanging up (a caller who left, a guard that refused) stops the
generating. A server that fails time after time is left alone for a while: the circuit breaker.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import aiohttp
import orjson

from ftaas_pipelines.serving.openai_shapes import RequestRefused

FAILURES = (aiohttp.ClientError, TimeoutError, ValueError)
BROKEN_AFTER = 5
REST_S = 10.0


class Breaker:
    """Counts failures in a row; behind `BROKEN_AFTER` of them nothing is asked for `REST_S`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._failures, self._again_at = clock, 0, 0.0

    @property
    def rests_s(self) -> float:
        """Seconds until it may be asked again."""
        return max(0.0, self._again_at - self._clock()) if self._failures >= BROKEN_AFTER else 0.0

    def failed(self) -> None:
        self._failures += 1
        self._again_at = self._clock() + REST_S

    def worked(self) -> None:
        self._failures = 0


class Reply:
    """An engine's answer whose body has not been read."""

    def __init__(self, response: aiohttp.ClientResponse, done: Callable[[], None], breaker: Breaker):
        self._response, self._done, self._breaker = response, done, breaker

    async def whole(self) -> dict[str, Any]:
        """The body.

        Raises:
            RequestRefused: 503, the engine went away in the middle.
        """
        try:
            body: dict[str, Any] = orjson.loads(await self._response.read())
        except FAILURES as failure:
            self._breaker.failed()
            raise gone(failure) from failure
        self._breaker.worked()
        return body

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a streamed answer, up to `[DONE]`.

        Raises:
            RequestRefused: the engine went away in the middle, or reports what went wrong.
        """
        try:
            async for line in self._response.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                chunk: dict[str, Any] = orjson.loads(line[6:])
                if "error" in chunk:
                    said: Any = chunk["error"]
                    raise RequestRefused(502, str(said.get("message")), _code(said))
                yield chunk
        except FAILURES as failure:
            self._breaker.failed()
            raise gone(failure) from failure
        self._breaker.worked()

    async def close(self) -> None:
        """Hang up; harmless when all was read."""
        self._done()
        self._done = _nothing
        if self._response.content.at_eof():
            self._response.release()  # the connection serves the next one
        else:
            self._response.close()


def _nothing() -> None: ...


def session() -> aiohttp.ClientSession:
    """What engines are asked through. httpx took two thirds of the gateway's time."""
    # Shorter than the engines' keep-alive, so that no request meets a connection being closed.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=10)
    timeout = aiohttp.ClientTimeout(total=600, sock_connect=5)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)


class Asked(Protocol):
    """Who is asked.

    Attributes:
        headers: sent along with every request.
        timeout: of a whole answer; None: the session's.
        attempts: how often a request is sent where it was not taken.
        ours: whether its refusals are meant for the caller.
    """

    url: str
    headers: dict[str, str]
    breaker: Breaker
    timeout: aiohttp.ClientTimeout | None
    attempts: int
    ours: bool


async def ask(
    session: aiohttp.ClientSession,
    engine: Asked,
    path: str,
    body: dict[str, Any],
    headers: dict[str, str],
    done: Callable[[], None] = _nothing,
) -> Reply:
    """Send a request.

    Args:
        done: called once, when the reply is closed or there is none.

    Raises:
        RequestRefused: what the engine refused, as it said it; 503 where it cannot be reached or rests.
    """
    breaker = engine.breaker
    try:
        if (rest := breaker.rests_s) > 0:
            raise RequestRefused(
                503, "The engine fails; it is left alone for a while", "engine_resting", None,
                {"Retry-After": str(int(rest) + 1)},
            )  # fmt: skip
        response = await _sent(session, engine, path, orjson.dumps(body), _JSON | engine.headers | headers)
        if response.status != 200:
            if response.status >= 500 and not engine.ours:
                breaker.failed()
            raise await _refused(response, engine.ours)
    except BaseException:
        done()
        raise
    return Reply(response, done, breaker)


async def _sent(
    session: aiohttp.ClientSession, engine: Asked, path: str, body: bytes, headers: dict[str, str]
) -> aiohttp.ClientResponse:
    """The head of the answer: of the first that was taken, or of the last attempt."""
    options: dict[str, Any] = {"timeout": engine.timeout} if engine.timeout else {}
    for attempt in range(1, engine.attempts + 1):
        last = attempt == engine.attempts
        try:
            response = await session.post(engine.url + path, data=body, headers=headers, **options)
        except _NOT_TAKEN as failure:
            if last:
                engine.breaker.failed()
                raise gone(failure) from failure
        except FAILURES as failure:  # it may be at work on it
            engine.breaker.failed()
            raise gone(failure) from failure
        else:
            if last or response.status not in _BUSY:
                return response
            response.close()
        await asyncio.sleep(_PAUSE_S * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


_JSON = {"content-type": "application/json"}
# The connection was refused, or an idle one had been closed: asking again costs nothing but work.
_NOT_TAKEN = (aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError)
_BUSY = frozenset({429, 502, 503, 504})
_PAUSE_S = 0.1
_CODE = re.compile(r"[a-z_]{1,40}")


async def _refused(response: aiohttp.ClientResponse, ours: bool) -> RequestRefused:
    """What a refusal tells the caller: another server's word on keys and models is not for them."""
    try:
        said = orjson.loads(await response.read())
        said = said.get("error") or said
        if ours or response.status in (400, 413, 422):
            return RequestRefused(response.status, str(said["message"]), _code(said), said.get("param"))
    except (*FAILURES, AttributeError, KeyError, TypeError):
        pass
    finally:
        response.close()
    if response.status == 429:
        busy = "The server behind this model is busy"
        return RequestRefused(503, busy, "engine_busy", None, {"Retry-After": "2"})
    return RequestRefused(502, f"The engine answered {response.status}", "engine_failed")


def _code(said: dict[str, Any]) -> str:
    """An error's code as metrics and logs can bear it: another server's may be a number, or a sentence."""
    code = said.get("code")
    return code if isinstance(code, str) and _CODE.fullmatch(code) else "engine_failed"


def gone(failure: Exception) -> RequestRefused:
    """503: the engine does not answer (any more)."""
    said = f"The engine went away ({type(failure).__name__}); it is being started again"
    return RequestRefused(503, said, "engine_gone", None, {"Retry-After": "2"})
