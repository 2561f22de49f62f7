"""Connections to the public port: how many, how long the head of a request may take, how large it may be.

uvicorn bounds none of that for a connection that has not asked yet: it would keep a silent one, and read a
head without end. What a request's body may be is in `incoming.body_of`.
"""

import asyncio
import resource
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ftaas_pipelines.serving.openai_shapes import error

HEAD_WITHIN_S = 20.0
MOST_HEAD_BYTES = 64 << 10
TAKEN_WITHIN_S = 60.0  # a client that reads nothing of its answer for so long has gone
MOST_CONNECTIONS = 4096
_LINGER_S = 1.0  # closing at once, while bytes still come, would take back what was said last
_DESCRIPTORS = 16_384  # each request takes two: the client's connection and the engine's


def most_connections() -> int:
    """How many connections fit, after asking the system for as many files as it lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return min(MOST_CONNECTIONS, (_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft) // 2)


def bounded(most: int) -> "type[Bounded]":
    """The protocol of a server that has at most so many connections."""
    return type("Bounded", (Bounded,), {"most": most})


class Bounded(HttpToolsProtocol):
    """uvicorn's protocol, and what it leaves open."""

    most = MOST_CONNECTIONS

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._in_head = self._turned_away = False
        self._head_bytes = 0
        self._until: asyncio.TimerHandle | None = None  # for a head, or for what is left of a refused body
        self._taken_until: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._turn_away(503, "Too many connections; come again in a while", "overloaded")
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        self._taken()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._turned_away:
            return
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._turned_away or self.transport.is_closing():
            self._wait_no_more()
        elif self._in_head and self._head_bytes > MOST_HEAD_BYTES:
            self._too_large()
        elif self._until is None and not self._answering:
            self._wait()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._wait_no_more()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_HEAD_BYTES:
            self._too_large()
            raise ValueError("the head is too large")  # for the parser to end
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._wait_no_more()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What cannot be read as HTTP, in OpenAI's shape; and never into the middle of an answer."""
        if self._answering:
            self.transport.close()
        elif not self._turned_away:
            self._turn_away(400, msg, "invalid_http")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taken_until = self.loop.call_later(TAKEN_WITHIN_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taken()

    @property
    def _answering(self) -> bool:
        cycle: Any = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _wait(self) -> None:
        self._until = self.loop.call_later(HEAD_WITHIN_S, self._too_slow)

    def _wait_no_more(self) -> None:
        if self._until is not None:
            self._until.cancel()
            self._until = None

    def _too_slow(self) -> None:
        self._until = None
        if self._in_head:
            self._turn_away(408, "The headers came too slowly", "request_timeout")
        else:
            self.transport.close()

    def _too_large(self) -> None:
        said = f"The headers are larger than {MOST_HEAD_BYTES >> 10} KiB"
        self._turn_away(431, said, "headers_too_large")

    def _taken(self) -> None:
        if self._taken_until is not None:
            self._taken_until.cancel()
            self._taken_until = None

    def _turn_away(self, status: int, message: str, code: str) -> None:
        body = orjson.dumps(error(status, message, code))
        retry = b"retry-after: 5\r\n" if status == 503 else b""
        head = b"content-type: application/json\r\n" + retry + b"connection: close\r\ncontent-length: "
        self.transport.write(STATUS_LINE[status] + head + b"%d\r\n\r\n" % len(body) + body)
        self._turned_away = True
        if self.transport.can_write_eof():  # not under TLS
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)
