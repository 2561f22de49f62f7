"""`python -m ftaas_pipelines.serving.trace_sender ENVIRONMENT FD`: makes spans of what the gateway noted.

A process of its own (see `traces.py`). Reads one message a request from a socket, makes its spans, and has
OpenTelemetry's SDK send them in batches, as its `OTEL_…` variables say. Ends when the gateway does.
"""

import logging
import os
import socket
import sys
import threading
from typing import Any

import orjson
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import IdGenerator, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    set_span_in_context,
)

from ftaas_pipelines.serving import logs
from ftaas_pipelines.serving.traces import CLOSE_S

_MOST_BYTES = 1 << 20
_KINDS = {"server": SpanKind.SERVER, "internal": SpanKind.INTERNAL, "generate": SpanKind.CLIENT}


class Noted(IdGenerator):
    """Gives the ids that the gateway drew: the engine knows one of them already."""

    trace = span = 0

    def generate_trace_id(self) -> int:
        return self.trace

    def generate_span_id(self) -> int:
        return self.span


def put(tracer: Tracer, ids: Noted, row: dict[str, Any]) -> None:
    """Make the spans of one message."""
    ids.trace, ids.span = int(row["trace"], 16), int(row["span"], 16)
    root = tracer.start_span(
        row["name"], _parent(row), _KINDS[row["kind"]], row["facts"], start_time=row["begun"]
    )
    inside = set_span_in_context(root)
    for name, span, begun, ended, status, code in row["steps"]:
        ids.span = int(span, 16)
        kind = _KINDS.get(name, SpanKind.INTERNAL)
        _end(tracer.start_span(name, inside, kind, start_time=begun), ended, status, code)
    if row["first"]:
        root.add_event("gen_ai.first_token", timestamp=row["first"])
    _end(root, row["ended"], row["status"], row["code"])


def _parent(row: dict[str, Any]) -> Context:
    if not row["parent"]:
        return Context()
    flags, state = TraceFlags(TraceFlags.SAMPLED), TraceState.from_header([row["state"]])
    remote = row["kind"] == "server"
    at = SpanContext(int(row["trace"], 16), int(row["parent"], 16), remote, flags, state)
    return set_span_in_context(NonRecordingSpan(at))


def _end(span: Span, at: int, status: int, code: str) -> None:
    if code:
        span.set_attribute("error.type", code)
    if code and status >= 500:  # a caller's fault is no error of a server, says the convention
        span.set_status(StatusCode.ERROR)
    span.end(at)


def main(environment: str, descriptor: int) -> None:
    """Take messages until the gateway is gone, then send what waits."""
    logs.start()
    about = {"deployment.environment.name": environment}
    if "OTEL_SERVICE_NAME" not in os.environ:  # what is given here would win over it
        about["service.name"] = "ftaas-gateway"
    ids = Noted()
    provider = TracerProvider(ALWAYS_ON, Resource.create(about), False, id_generator=ids)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer("ftaas")
    with socket.socket(fileno=descriptor) as messages:
        while message := messages.recv(_MOST_BYTES):
            put(tracer, ids, orjson.loads(message))
    closing = threading.Thread(target=provider.shutdown, daemon=True)
    closing.start()
    closing.join(CLOSE_S)
    logging.shutdown()
    os._exit(0)  # a collector that does not answer is waited for no longer


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
