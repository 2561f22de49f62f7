"""A stand-in for an OpenTelemetry collector: takes spans over OTLP/HTTP, and can be told to be ill."""

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Collector:
    """Listens on a port of its own.

    Attributes:
        raw: every body as it came.
        ill: answers nothing, for as long as it is set.
    """

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.resource: dict[str, Any] = {}
        self.ill = threading.Event()
        self._spans: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                while outer.ill.is_set():
                    time.sleep(0.05)
                outer._take(body)
                said = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _take(self, body: bytes) -> None:
        asked = ExportTraceServiceRequest.FromString(body)
        self.raw.append(body)
        for group in asked.resource_spans:
            self.resource = attributes(group.resource)
            self._spans += [span for scope in group.scope_spans for span in scope.spans]

    def trace(self, response_id: str, within_s: float = 10.0) -> tuple[Any, list[Any]]:
        """The span of a request, and those below it in the order of their beginning."""
        deadline = time.monotonic() + within_s
        while not (found := [s for s in self._spans if is_of(s, response_id)]):
            assert time.monotonic() < deadline, "the spans did not come"
            time.sleep(0.05)
        (root,) = found
        below = [s for s in self._spans if s.parent_span_id == root.span_id]
        return root, sorted(below, key=lambda s: s.start_time_unix_nano)

    def find(self, wanted: Callable[[Any], bool]) -> list[Any]:
        return [span for span in self._spans if wanted(span)]

    def close(self) -> None:
        self.ill.clear()
        self._server.shutdown()
        self._server.server_close()


def is_of(span: Any, response_id: str) -> bool:
    return attributes(span).get("ftaas.response_id") == response_id


def attributes(of: Any) -> dict[str, Any]:
    """What is written on a span or a resource, as Python has it."""
    return {pair.key: _value(pair.value) for pair in of.attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(v) for v in value.array_value.values]
    return getattr(value, kind)
