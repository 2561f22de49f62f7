"""Callers who mean harm, against a running endpoint: what they send, and that it costs nobody else anything.

More of them: broken bodies in `test_endpoint.py`, keys and tokens in `test_access.py`, texts that take long
to look through in `test_guard_time.py`.
"""

import http.client
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import schemathesis
from callers import eventually, refused, said_to
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from serving_house import CAUSAL, House, random_adapter

from ftaas_pipelines.serving.access import keys
from ftaas_pipelines.serving.access.caller import ACTIONS, Allowance

PATH = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "What does fault E42 mean?"}]


@dataclass
class Fort:
    """An endpoint that asks for a key, and a key."""

    house: House
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.house.settings.port_staging

    def post(self, content: bytes | Any, path: str = PATH, **more: Any) -> httpx.Response:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.house.http.post(path, content=body, headers=self.headers, **more)

    def head(self, *lines: str, method: str = "POST", path: str = PATH) -> bytes:
        """The head of a request with a valid key."""
        said = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {self.key}", *lines]
        return "\r\n".join(said).encode("latin-1") + b"\r\n\r\n"

    def log(self) -> str:
        return self.house.folder.log.read_text("utf-8")


@pytest.fixture(scope="module")
def fort(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fort]:
    house = House.at(tmp_path_factory.mktemp("home"), access="required")
    house.add("alpha", CAUSAL, random_adapter(house.store, CAUSAL, 1))
    issued = {"projects": ["*"], "environments": ["staging"], "actions": ACTIONS, "actor": "olga"}
    pepper = keys.pepper(house.settings.home)
    _, key = keys.issue(house.ledger, pepper, name="x", expires=None, allowance=Allowance(), **issued)  # pyright: ignore[reportArgumentType]
    try:
        house.up(house.releases["alpha"][0])
        yield Fort(house, key)
    finally:
        house.close()


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "alpha", "messages": QUESTION, **changes}


# -- what the description says -------------------------------------------------------------------------


def test_the_description_is_true_and_nothing_in_it_breaks_the_endpoint(fort: Fort) -> None:
    """Schemathesis: no 5xx, no status, content type or shape that is not described, no way past the key.

    Two of its checks are left out: what a schema cannot say (an image must be a data URI) is refused all the
    same, and numbers are taken where they are written as texts.
    """
    spec = fort.house.http.get("/openapi.json").json()
    statuses: set[int] = set()
    for found in schemathesis.openapi.from_dict(spec).get_all_operations():
        operation: Any = found.ok()  # pyright: ignore[reportAttributeAccessIssue]
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @hypothesis_settings(
                max_examples=40,
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=[
                    HealthCheck.too_slow,
                    HealthCheck.filter_too_much,
                    HealthCheck.data_too_large,
                ],
            )
            @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
            def holds(case: Any, known: bool) -> None:
                asked: Any = case.body
                if known and isinstance(asked, dict) and isinstance(asked.get("model"), str):
                    asked["model"] = "alpha"
                    if "messages" in asked and asked.get("seed", 1):
                        asked["messages"] = QUESTION
                answer = case.call_and_validate(
                    base_url=fort.house.url,
                    headers=fort.headers,
                    excluded_checks=[positive_data_acceptance, negative_data_rejection],
                )
                statuses.add(answer.status_code)

            holds()
    assert {200, 400, 401, 404} <= statuses and max(statuses) < 500


# -- bodies --------------------------------------------------------------------------------------------

DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (DEEP, "too_many_values"),
        (b"[" * 30_000, "invalid_json"),
        (
            b'{"model": "alpha", "messages": ' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}",
            "invalid_json",
        ),
        (b'{"model": "alpha", "messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_json"),
        (b'{"model": "alpha", "messages": [{"role": "user", "content": "\x00"}]}', "invalid_json"),
        (b"\xef\xbb\xbf{}", "invalid_json"),
        (json.dumps(body()).encode("utf-16"), "invalid_json"),
        (json.dumps(body(max_tokens=0)).encode(), "invalid_value"),
        (json.dumps(body(max_tokens=-(2**70))).encode(), "invalid_value"),
        (json.dumps(body(max_completion_tokens=-5)).encode(), "invalid_value"),
        (json.dumps(body(n=10**9)).encode(), "invalid_value"),
        (json.dumps(body(n=-1)).encode(), "invalid_value"),
        (json.dumps(body(top_logprobs=10**6, logprobs=True)).encode(), "invalid_value"),
        (json.dumps(body(temperature=-0.1)).encode(), "invalid_value"),
        (json.dumps(body(temperature=float("inf"))).encode(), "invalid_json"),
        (json.dumps(body()).encode().replace(b"{", b'{"temperature": 1e400, ', 1), "invalid_json"),
        (json.dumps(body(user="x" * 257)).encode(), "invalid_value"),
        (json.dumps(body(model=["alpha"])).encode(), "invalid_value"),
        (json.dumps(body(model=None)).encode(), "invalid_value"),
        (json.dumps(body(messages=QUESTION * 3000)).encode(), "invalid_value"),
        (json.dumps(body(stop=["a"] * 100_000)).encode(), "too_many_values"),
        (b'{"model": "alpha", "messages": [' + b"1," * 1_000_000 + b"1]}", "too_many_values"),
        (b"{" + b",".join(b'"%d": 1' % i for i in range(100_000)) + b"}", "too_many_values"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_body_that_means_harm_is_one_short_error_at_once(fort: Fort, content: bytes, code: str) -> None:
    began = time.monotonic()
    refused(fort.post(content), 400, code)
    assert time.monotonic() - began < 2


def test_large_numbers_are_bounded_and_not_believed(fort: Fort) -> None:
    for changes in (
        {"max_tokens": 10**18},
        {"max_completion_tokens": 2**62},
        {"seed": 2**63 - 1},
        {"seed": -(2**63)},
    ):
        answer = fort.post(body(**changes))
        assert answer.status_code == 200, (changes, answer.text)
        assert answer.json()["usage"]["completion_tokens"] <= 24
    refused(fort.post(body(max_tokens=2**64)), 400, "invalid_value")
    long = [{"role": "user", "content": "long " * 3000}]
    for path, asked in (
        (PATH, body(messages=long)),
        ("/v1/completions", {"model": "alpha", "prompt": "x " * 9000}),
    ):
        refused(fort.post(asked, path), 400, "context_length_exceeded")


def test_an_unknown_name_is_not_repeated_at_length(fort: Fort) -> None:
    for name in ("nobody", "x" * 1_000_000, "../alpha", "alpha\n", "\u202eahpla", "", "alpha%00"):
        refused(fort.post(body(model=name)), 404, "model_not_found")
    for path in ("/v1/models/nobody", "/v1/models/%ff%fe", "/v1/models/..%2falpha", "/v1/models/%00"):
        answer = fort.house.http.get(path, headers=fort.headers)
        assert answer.status_code == 404 and answer.json()["error"]["code"] in (
            "model_not_found",
            "not_found",
        )


def test_a_hundred_megabytes_are_not_read(fort: Fort) -> None:
    began = time.monotonic()
    got = said_to(fort.address, fort.head(f"Content-Length: {100 << 20}"))
    assert got.startswith(b"HTTP/1.1 413 ") and b'"request_too_large"' in got  # before any of it came
    chunk = b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n"
    got = said_to(fort.address, fort.head("Transfer-Encoding: chunked"), *[chunk] * 100)
    assert not got or got.startswith(b"HTTP/1.1 413 ")  # what hangs up on a sender may be lost to them
    assert time.monotonic() - began < 10
    assert fort.post(body()).status_code == 200


def test_others_are_answered_while_somebody_sends_the_largest_bodies(fort: Fort) -> None:
    """Nothing that one body holds keeps the gateway from the others for long."""
    worst = [
        b'{"model": "alpha", "messages": [' + b"1," * 15_000 + b"1]}",
        json.dumps(body(messages=[{"role": "user", "content": ""}] * 2048)).encode(),
        json.dumps(body(messages=[{"role": "user", "content": " " * 4_000_000}])).encode(),
        json.dumps(body(z=[[]] * 15_000)).encode(),
    ]
    over = threading.Event()

    def harm(content: bytes) -> None:
        with httpx.Client(
            base_url=fort.house.url, headers=fort.headers, timeout=60, trust_env=False
        ) as client:
            while not over.is_set():
                assert client.post(PATH, content=content).status_code < 500

    with ThreadPoolExecutor(len(worst)) as pool:
        harming = [pool.submit(harm, content) for content in worst]
        try:
            waits = [timed(lambda: fort.house.http.get("/livez")) for _ in range(20)]
        finally:
            over.set()
        for each in harming:
            each.result()
    assert statistics.median(waits) < 1.0, waits


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# -- requests that are none ----------------------------------------------------------------------------

SMUGGLED = "GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n"
HEADS: dict[str, tuple[str, ...]] = {
    "length and chunks": ("Content-Length: 4", "Transfer-Encoding: chunked"),
    "chunks and length": ("Transfer-Encoding: chunked", "Content-Length: 4"),
    "two lengths": ("Content-Length: 0", "Content-Length: 200"),
    "a list of lengths": ("Content-Length: 0, 200",),
    "a signed length": ("Content-Length: +0",),
    "a negative length": ("Content-Length: -1",),
    "a length in hex": ("Content-Length: 0x0",),
    "an endless length": (f"Content-Length: {2**64}",),
    "a coding that is none": ("Transfer-Encoding: xchunked",),
    "two codings": ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
    "chunked and then not": ("Transfer-Encoding: chunked, identity",),
    "a blank before the colon": ("Transfer-Encoding : chunked",),
    "a folded line": ("X-A: b", " Content-Length: 200"),
    "a folded coding": ("Transfer-Encoding:", " chunked"),
    "NUL in a name": ("X\x00A: b",),
    "NUL in a value": ("X-A: b\x00c",),
    "a bare CR": ("X-A: b\rContent-Length: 200",),
    "a bare LF in a name": ("X-A\nB: c",),
}
CHUNKS = {
    "a size that is none": b"zz\r\n",
    "a negative size": b"-1\r\n",
    "an endless size": b"f" * 17 + b"\r\n",
    "a size in hex by name": b"0x0\r\n\r\n",
    "more than was said": b"1\r\nabc\r\n0\r\n\r\n",
    "NUL in a size": b"\x000\r\n\r\n",
}


@pytest.mark.parametrize("name", [*HEADS, *CHUNKS])
def test_a_second_request_is_not_smuggled_in_the_first(fort: Fort, name: str) -> None:
    """One error and a closed connection: whatever a proxy before us read, nothing is left to be read."""
    hidden = SMUGGLED.format(key=fort.key).encode()
    if name in HEADS:
        head = fort.head(*HEADS[name])
        tail = b"0\r\n\r\n" + hidden if "Transfer-Encoding" in "".join(HEADS[name]) else hidden
    else:
        head, tail = fort.head("Transfer-Encoding: chunked"), CHUNKS[name] + hidden
    got = said_to(fort.address, head + tail)
    assert b'"object":"list"' not in got, got[:500]
    assert got.count(b"HTTP/1.1 ") <= 1 and b"HTTP/1.1 200" not in got and b"HTTP/1.1 5" not in got


@pytest.mark.parametrize(
    "said",
    [
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/models\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /v1/models\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,  # a TLS hello
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT engine:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://127.0.0.1:1/v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
        b"* * *\r\n\r\n",
        b"\r\n" * 40_000,
    ],
    ids=["NUL", "bytes", "version", "0.9", "TLS", "h2", "CONNECT", "absolute", "rubbish", "nothing"],
)
def test_what_is_no_request_is_an_error_in_the_usual_shape(fort: Fort, said: bytes) -> None:
    got = said_to(fort.address, said, within_s=1.0)
    if got:
        head, _, rest = got.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 4"), got[:200]
        assert json.loads(rest)["error"]["code"]
    assert fort.house.http.get("/livez").status_code == 200


def test_a_websocket_is_not_opened(fort: Fort) -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
               "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")  # fmt: skip
    got = said_to(fort.address, fort.head(*upgrade, method="GET", path="/v1/models"), within_s=1.0)
    assert b" 101 " not in got.partition(b"\r\n")[0]


def test_a_head_has_room_and_an_end(fort: Fort) -> None:
    fits = [f"X-{i}: {'a' * 1000}" for i in range(50)]
    assert said_to(fort.address, fort.head(*fits, method="GET", path="/v1/models")).startswith(
        b"HTTP/1.1 200"
    )
    too_large = (
        fort.head(*[f"X-{i}: {'a' * 1000}" for i in range(80)], method="GET"),
        fort.head(f"X: {'a' * 100_000}", method="GET"),
        fort.head(method="GET", path="/" + "a" * 100_000),
        b"GET / HTTP/1.1\r\nX: " + b"a" * (32 << 20),  # and no end
    )
    for said in too_large:
        for size in (len(said), 8192):
            pieces = [said[at : at + size] for at in range(0, len(said), size)]
            got = said_to(fort.address, *pieces, within_s=5.0)
            assert not got or (got.startswith(b"HTTP/1.1 431 ") and b'"headers_too_large"' in got)
            assert got or len(said) > 1 << 20  # only who sends on and on may miss the answer


def test_headers_with_bytes_that_are_no_text_let_nobody_in(fort: Fort) -> None:
    for value in (
        b"Bearer \xff\xfe",
        b"Bearer ftaas_key_\xe9",
        b"\x80",
        b"Bearer " + b"." * 60_000,
        b"Bearer a.b.c",
    ):
        connection = http.client.HTTPConnection(*fort.address, timeout=5)
        connection.putrequest("GET", "/v1/models")
        connection.putheader("Authorization", value)
        connection.endheaders()
        assert connection.getresponse().status == 401
        connection.close()


# -- connections ---------------------------------------------------------------------------------------


def test_idle_connections_and_unfinished_heads_keep_nobody_out(fort: Fort) -> None:
    def many(count: int, said: bytes) -> list[socket.socket]:
        made = [socket.create_connection(fort.address, timeout=5) for _ in range(count)]
        for each in made:
            each.sendall(said)
        return made

    before = [timed(lambda: fort.post(body())) for _ in range(10)]
    idle = many(1000, b"") + many(200, b"POST /v1/chat") + many(200, fort.head("Content-Length: 100") + b"{")
    try:
        waits = [timed(lambda: fort.post(body())) for _ in range(20)]
    finally:
        for each in idle:
            each.close()
    assert statistics.median(waits) < 3 * statistics.median(before) + 0.2, (before, waits)


def test_who_leaves_in_the_middle_of_an_upload_is_no_failure_of_ours(fort: Fort) -> None:
    before = fort.log().count('"caller_left"')
    for lines in (("Content-Length: 1000",), ("Transfer-Encoding: chunked",)):
        with socket.create_connection(fort.address, timeout=5) as raw:
            raw.sendall(fort.head(*lines) + b'5\r\n{"mod')
            time.sleep(0.1)
    eventually(lambda: fort.log().count('"caller_left"') >= before + 2)
    assert "Traceback" not in fort.log() and '"internal"' not in fort.log()
    eventually(lambda: "ftaas_in_flight 0.0" in fort.house.http.get("/metrics").text)
