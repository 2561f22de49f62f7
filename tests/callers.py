"""What tests of an endpoint have in common: waiting, refusals, and bytes that no client would send."""

import contextlib
import socket
import time
from collections.abc import Callable

import httpx


def eventually(true: Callable[[], bool], within_s: float = 120.0) -> float:
    """Wait until it is true; returns how long that took, s. Patient: a busy machine is no failure."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < within_s, "it did not happen in time"
        time.sleep(0.05)
    return time.monotonic() - began


def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text[:300]
    error = answer.json()["error"]
    assert error["code"] == code and error["message"] and error["type"] and len(answer.content) < 2000


def said_to(address: tuple[str, int], *pieces: bytes, within_s: float = 2.0) -> bytes:
    """What comes back for these bytes until the other side hangs up, or says nothing more."""
    with socket.create_connection(address, timeout=within_s) as raw:
        got = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            for piece in pieces:
                raw.sendall(piece)
            while piece := raw.recv(65536):
                got += piece
        return got
