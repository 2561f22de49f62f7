"""The bounds of connections and bodies: slow heads, slow readers, one connection too many.

A server in this process, with an application that does nothing; callers who mean harm to a whole endpoint are
in `test_attacks.py`.
"""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from callers import eventually, refused, said_to
from serving_house import free_port
from starlette.requests import Request

from ftaas_pipelines.serving import connections, incoming
from ftaas_pipelines.serving.openai_shapes import RequestRefused


class Door:
    """The protocol of the public port before an application that does nothing, in this process."""

    def __init__(self, most: int):
        protocol = connections.bounded(most)
        config = uvicorn.Config(
            self.answers, http=protocol, interface="asgi3", lifespan="off", log_config=None
        )
        self.server = uvicorn.Server(config)
        self.address = "127.0.0.1", free_port()
        self.listener = socket.create_server(self.address)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()
        eventually(lambda: self.server.started)

    async def answers(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers without reading; at `/large` with more than a connection holds."""
        size = (64 << 20) if scope["path"] == "/large" else 2
        head = [(b"content-length", b"%d" % size)]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for at in range(0, size, 1 << 20):
            piece = b"x" * min(1 << 20, size - at)
            await send({"type": "http.response.body", "body": piece, "more_body": at + len(piece) < size})

    def close(self) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.thread.join()
        self.listener.close()


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    monkeypatch.setattr(connections, "HEAD_WITHIN_S", 0.4)
    monkeypatch.setattr(connections, "TAKEN_WITHIN_S", 0.4)
    made = Door(most=5)
    try:
        yield made
    finally:
        made.close()


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def dripped(
    address: tuple[str, int], first: bytes, drop: bytes, within_s: float = 4.0
) -> tuple[bytes, float]:
    """Send something, then a little at a time for ever. What came back, and after how long it was closed."""
    began, got = time.monotonic(), b""
    with socket.create_connection(address, timeout=5) as raw:
        raw.sendall(first)
        raw.settimeout(0.1)
        while time.monotonic() - began < within_s:
            with contextlib.suppress(TimeoutError):
                try:
                    piece = raw.recv(65536)
                except ConnectionError:
                    break
                if not piece:
                    break
                got += piece
            if drop:
                try:
                    raw.sendall(drop)
                except ConnectionError:
                    break
    return got, time.monotonic() - began


@pytest.mark.parametrize(
    ("first", "drop", "status"),
    [
        (b"", b"", b""),
        (b"", b"\r\n", b""),
        (b"GET /", b"x", b"408"),
        (b"GET / HTTP/1.1\r\n", b"X-A: b\r\n", b"408"),
        (GET, b"\r\n", b"200"),
        (GET + b"GET /", b"x", b"200"),
        (b"POST / HTTP/1.1\r\nContent-Length: 9999\r\n\r\n", b"x", b"200"),  # answered, and never read
    ],
    ids=["silent", "blank lines", "a request line", "headers", "after an answer", "a second", "a body"],
)
def test_who_is_slow_is_let_go(door: Door, first: bytes, drop: bytes, status: bytes) -> None:
    got, took = dripped(door.address, first, drop)
    assert took < 2.5, "it is kept for ever"
    assert got.startswith(b"HTTP/1.1 " + status if status else b"")
    assert (b"408" in got) == (status == b"408" or first.endswith(b"GET /"))


def test_a_connection_lives_on_between_requests(door: Door) -> None:
    with socket.create_connection(door.address, timeout=5) as raw:
        for pause in (0.0, 1.0, 0.2):  # longer than a head may take
            time.sleep(pause)
            raw.sendall(GET)
            assert raw.recv(4096).endswith(b"xx")


def test_who_reads_nothing_of_an_answer_is_let_go(door: Door) -> None:
    with socket.create_connection(door.address, timeout=5) as raw:
        raw.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(1.5)
        got = 0
        with contextlib.suppress(ConnectionError):
            while piece := raw.recv(1 << 20):
                got += len(piece)
        assert got < 64 << 20
    with socket.create_connection(door.address, timeout=5) as raw:  # and who reads it slowly gets all of it
        raw.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got = 0
        while piece := raw.recv(1 << 20):
            got += len(piece)
        assert got > 64 << 20


def test_one_connection_too_many_is_told_so(door: Door) -> None:
    kept = [socket.create_connection(door.address, timeout=5) for _ in range(5)]
    try:
        for each in kept:
            each.sendall(GET)
            assert each.recv(4096).endswith(b"xx")
        answer = httpx.get("http://{}:{}/".format(*door.address), trust_env=False)
        refused(answer, 503, "overloaded")
        assert answer.headers["retry-after"] and answer.headers["connection"] == "close"
        kept.pop().close()
        eventually(lambda: said_to(door.address, GET, within_s=0.3).startswith(b"HTTP/1.1 200"))
    finally:
        for each in kept:
            each.close()


def test_the_bound_on_connections_leaves_files_for_the_engines() -> None:
    import resource

    most = connections.most_connections()
    assert 2 * most <= resource.getrlimit(resource.RLIMIT_NOFILE)[0] and most <= connections.MOST_CONNECTIONS


def test_a_slow_body_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "READ_WITHIN_S", 0.1)

    async def drop() -> dict[str, Any]:
        await asyncio.sleep(0.03)
        return {"type": "http.request", "body": b" ", "more_body": True}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    with pytest.raises(RequestRefused) as caught:
        asyncio.run(incoming.body_of(Request(scope, drop)))
    assert caught.value.status == 408 and caught.value.headers == {"connection": "close"}
