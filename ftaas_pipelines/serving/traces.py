"""Spans of requests (OpenTelemetry): one of the request, one of each step, never a text or a key.

On where OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT names a collector; nothing of the
SDK is loaded otherwise. Here times are noted and ids drawn, no more: spans are made and sent by a process of
its own (`trace_sender.py`). In the gateway they cost ten times as much, and whoever was answered meanwhile
waited for Python's lock. What that process has no room for is lost, and counted; a request never waits.

Names follow OpenTelemetry's conventions for HTTP servers and generative AI:
https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

import asyncio
import contextlib
import inspect
import logging
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import orjson

from ftaas_pipelines.serving.openai_shapes import RequestRefused

if TYPE_CHECKING:
    from ftaas_pipelines.serving.passage import Passage

CLOSE_S = 3.0  # longest that the end of the gateway waits for a collector
_ROOM_BYTES = 4 << 20  # of what waits for the sender
_OPERATIONS = {"chat": "chat", "completion": "text_completion"}
_ROUTES = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
_log = logging.getLogger("ftaas.traces")

P = ParamSpec("P")
R = TypeVar("R")


def step(function: Callable[P, R]) -> Callable[P, R]:
    """A span around a step of a request: a function, plain or async, with a parameter `passage`."""
    place = [*inspect.signature(function).parameters].index("passage")
    name, waits = function.__name__, inspect.iscoroutinefunction(function)

    @wraps(function)
    def stepped(*args: P.args, **kwargs: P.kwargs) -> R:
        trace = cast("Passage", args[place]).trace
        if trace is None:
            return function(*args, **kwargs)
        if waits:
            return cast(R, trace.awaited(name, cast(Awaitable[Any], function(*args, **kwargs))))
        with trace.step(name):
            return function(*args, **kwargs)

    return stepped


def opened(environment: str, env: Mapping[str, str] = os.environ) -> "Traces | None":
    """Spans of this environment's requests; None where no collector is named."""
    named = env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    off = env.get("OTEL_SDK_DISABLED", "").lower() == "true" or env.get("OTEL_TRACES_EXPORTER") == "none"
    return Traces(environment) if named and not off else None


class Traces:
    """Begins the trace of each request, and hands on what was seen.

    Attributes:
        lost: requests whose spans found no room, or no sender.
    """

    def __init__(self, environment: str):
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.lost, self._gone = 0, False
        self._carried = TraceContextTextMapPropagator()
        self._sampler = TracerProvider(shutdown_on_exit=False).sampler  # as the environment says
        self._out, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM_BYTES)
        self._out.setblocking(False)
        with other:
            program = [sys.executable, "-m", "ftaas_pipelines.serving.trace_sender"]
            self._sender = subprocess.Popen(
                [*program, environment, str(other.fileno())],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # it ends when the socket does, never before the last request
            )

    def begin(self, passage: "Passage") -> "Trace":
        """The request's trace: the caller's, where `traceparent` names one."""
        from opentelemetry.trace import get_current_span

        given = passage.http.headers
        context, parent, state = None, "", ""
        id = random.getrandbits(128)
        if "traceparent" in given:
            names = ("traceparent", "tracestate")
            context = self._carried.extract({name: given[name] for name in names if name in given})
            at = get_current_span(context).get_span_context()
            if at.is_valid:
                id, parent, state = at.trace_id, f"{at.span_id:016x}", at.trace_state.to_header()
        name = f"POST {_ROUTES[passage.kind]}"
        sampled = self._sampler.should_sample(context, id, name).decision.is_sampled()
        return Trace(self, f"{id:032x}", name, parent, sampled, state, "server")

    def send(self, row: dict[str, Any]) -> None:
        """Hand on; never waits."""
        try:
            self._out.send(orjson.dumps(row))
        except (OSError, TypeError) as error:  # no room, nobody there, or what is no UTF-8
            if isinstance(error, ConnectionError) and not self._gone:
                self._gone = True
                _log.warning("no spans any more: their sender ended with code %s", self._sender.poll())
            self.lost += 1

    def close(self) -> None:
        """Have what waits sent, in bounded time."""
        self._out.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._sender.wait(CLOSE_S + 2)
        self._sender.kill()
        self._sender.wait()


class Trace:
    """What is noted of one request, or of a shadow beside it.

    Attributes:
        id: of the trace, 32 hexadecimal digits.
    """

    def __init__(self, traces: Traces, id: str, name: str, parent: str, sampled: bool, state: str, kind: str):
        self.id = id
        self._traces, self._name, self._parent, self._kind = traces, name, parent, kind
        self._sampled, self._state = sampled, state
        self._span = self._now = _drawn()
        self._begun = self._asked = time.time_ns()
        self._steps: list[tuple[str, str, int, int, int, str]] = []
        self._open: tuple[str, int] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What tells the engine which span it works for."""
        parent = f"00-{self.id}-{self._now}-{self._sampled:02x}"
        return {"traceparent": parent, **({"tracestate": self._state} if self._state else {})}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A span while something is done. A refusal leaves its code, a failure its kind: no message."""
        self._now, begun = _drawn(), time.time_ns()
        if name == "generate":
            self._asked = begun
        status, code = 200, ""
        try:
            yield
        except RequestRefused as why:
            status, code = why.status, why.code or "refused"
            raise
        except asyncio.CancelledError:
            status, code = 499, "caller_left"
            raise
        except BaseException as failure:
            status, code = 500, type(failure).__name__
            raise
        finally:
            self._steps.append((name, self._now, begun, time.time_ns(), status, code))
            self._now = self._span

    async def awaited(self, name: str, work: Awaitable[R]) -> R:
        """A span while something is awaited."""
        with self.step(name):
            return await work

    def go_on(self, name: str) -> None:
        """Open a span that ends with the request: what is done while an answer streams."""
        self._open = name, time.time_ns()

    def beside(self, name: str) -> "Trace":
        """A span below the request's for another passage that is made for it, with steps of its own."""
        return Trace(self._traces, self.id, name, self._span, self._sampled, self._state, "internal")

    def ended(self, passage: "Passage") -> None:
        """Hand on what is known of the request."""
        if not self._sampled:
            return
        now = time.time_ns()
        if self._open is not None:
            name, begun = self._open
            self._steps.append((name, _drawn(), begun, now, passage.status, passage.code))
        first = self._asked + int(passage.first_token_s * 1e9) if passage.first_token_s else 0
        self._traces.send(
            {
                "trace": self.id,
                "span": self._span,
                "parent": self._parent,
                "state": self._state,
                "kind": self._kind,
                "name": self._name,
                "begun": self._begun,
                "ended": now,
                "status": passage.status,
                "code": passage.code,
                "first": first,
                "facts": _facts(passage),
                "steps": self._steps,
            }
        )


def _drawn() -> str:
    """A span's id."""
    return f"{random.getrandbits(64):016x}"


def _facts(passage: "Passage") -> dict[str, Any]:
    """Attributes of a request. The model only where it is known here: callers cannot write into traces."""
    asked = passage.asked
    facts: dict[str, Any] = {
        "http.request.method": "POST",
        "http.route": _ROUTES[passage.kind],
        "url.path": _ROUTES[passage.kind],
        "url.scheme": passage.http.scope.get("scheme", "http"),
        "http.response.status_code": passage.status,
        "gen_ai.operation.name": _OPERATIONS[passage.kind],
        "gen_ai.provider.name": "ftaas",
        "gen_ai.request.model": passage.project_label,
        "gen_ai.response.id": passage.id,
        "ftaas.response_id": passage.id,
    }
    if asked is not None:
        facts |= {"gen_ai.request.stream": asked.stream, "gen_ai.request.temperature": asked.temperature}
        facts |= {"gen_ai.request.top_p": asked.top_p, "gen_ai.request.choice.count": asked.n}
        if most := asked.max_completion_tokens or asked.max_tokens:
            facts["gen_ai.request.max_tokens"] = most
    if passage.target is not None:
        facts |= {"gen_ai.response.model": passage.project_label, "ftaas.release": passage.release}
        facts |= {"ftaas.variant": passage.variant, "ftaas.adapter_digest": passage.target.release.adapter}
    if passage.shadow_of:
        facts["ftaas.shadow_of"] = passage.shadow_of
    if passage.finish:
        facts["gen_ai.response.finish_reasons"] = [passage.finish]
    if passage.prompt_tokens:
        facts["gen_ai.usage.input_tokens"] = passage.prompt_tokens
        facts["gen_ai.usage.output_tokens"] = passage.completion_tokens
        facts["gen_ai.response.time_to_first_chunk"] = passage.first_token_s
        facts["ftaas.queue_seconds"] = passage.queue_ms / 1000
        facts["ftaas.cost_usd"] = passage.cost_usd
    if passage.noticed:
        facts["ftaas.guard"] = sorted({f"{n.where}:{n.rule}:{n.action}" for n in passage.noticed})
    return facts
