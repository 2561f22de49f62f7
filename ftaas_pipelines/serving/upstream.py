"""Asking an engine over HTTP: ours, or any server that speaks OpenAI's API.

An answer is read whole or as events; hanging up (a caller who left, a guard that refused) stops the
generating. A server that fails time after time is left alone for a while: the circuit breaker.
"""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import orjson

from ftaas_pipelines.serving.openai_shapes import RequestRefused

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

    def __init__(self, response: httpx.Response, done: Callable[[], None], breaker: Breaker):
        self._response, self._done, self._breaker = response, done, breaker

    async def whole(self) -> dict[str, Any]:
        """The body.

        Raises:
            RequestRefused: 503, the engine went away in the middle.
        """
        try:
            body: dict[str, Any] = orjson.loads(await self._response.aread())
        except (httpx.HTTPError, ValueError) as failure:
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
            async for line in self._response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                chunk: dict[str, Any] = orjson.loads(line[6:])
                if "error" in chunk:
                    raise RequestRefused(502, chunk["error"]["message"], chunk["error"]["code"])
                yield chunk
        except (httpx.HTTPError, ValueError) as failure:
            self._breaker.failed()
            raise gone(failure) from failure
        self._breaker.worked()

    async def close(self) -> None:
        """Hang up; harmless when all was read."""
        self._done()
        self._done = _nothing
        await self._response.aclose()


def _nothing() -> None: ...


async def ask(
    client: httpx.AsyncClient,
    url: str,
    body: dict[str, Any],
    headers: dict[str, str],
    breaker: Breaker,
    done: Callable[[], None] = _nothing,
) -> Reply:
    """Send a request.

    Args:
        done: called once, when the reply is closed or there is none.

    Raises:
        RequestRefused: what the engine refused, as it said it; 503 where it cannot be reached or rests.
    """
    try:
        if (rest := breaker.rests_s) > 0:
            raise RequestRefused(
                503, "The engine fails; it is left alone for a while", "engine_resting", None,
                {"Retry-After": str(int(rest) + 1)},
            )  # fmt: skip
        request = client.build_request("POST", url, content=orjson.dumps(body), headers=_JSON | headers)
        try:
            response = await client.send(request, stream=True)
        except httpx.HTTPError as failure:
            breaker.failed()
            raise gone(failure) from failure
        if response.status_code != 200:
            raise await _refused(response)
    except BaseException:
        done()
        raise
    return Reply(response, done, breaker)


_JSON = {"content-type": "application/json"}


async def _refused(response: httpx.Response) -> RequestRefused:
    try:
        said = orjson.loads(await response.aread())["error"]
        return RequestRefused(response.status_code, said["message"], said.get("code"), said.get("param"))
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return RequestRefused(502, f"The engine answered {response.status_code}", "engine_failed")
    finally:
        await response.aclose()


def gone(failure: Exception) -> RequestRefused:
    """503: the engine does not answer (any more)."""
    said = f"The engine went away ({type(failure).__name__}); it is being started again"
    return RequestRefused(503, said, "engine_gone", None, {"Retry-After": "2"})
