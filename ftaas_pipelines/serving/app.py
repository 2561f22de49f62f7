"""The HTTP application inside the Bento: OpenAI's API over the loaded releases.

Services do not call it: the gateway does, which knows callers, limits and guards. A Bento that stands
alone (an image) is called directly.
"""

import asyncio
import hmac
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from ftaas_pipelines.serving import incoming, runtime
from ftaas_pipelines.serving.answering import Answering
from ftaas_pipelines.serving.engine import Engine
from ftaas_pipelines.serving.openai_shapes import (
    ChatRequest,
    CompletionRequest,
    RequestRefused,
    error,
    invalid,
)
from ftaas_pipelines.serving.runtime import RuntimeState, ServedRelease
from ftaas_pipelines.serving.straight import Straight, described

if TYPE_CHECKING:
    from ftaas_pipelines.inference.batch import Generation
    from ftaas_pipelines.inference.scheduler import Ticket


class Meter:
    """What `/metrics` of an engine shows. Unknown models share one label: callers cannot grow the table."""

    def __init__(self, engine: Engine) -> None:
        disable_created_metrics()  # a time of birth beside every counter
        self.registry = CollectorRegistry()
        names = ("project", "release")
        kept: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter("ftaas_engine_requests", "Answers", (*names, "status"), **kept)
        self._tokens = Counter("ftaas_engine_tokens", "Tokens read and written", (*names, "kind"), **kept)
        self._queue = Histogram(
            "ftaas_engine_queue_seconds", "Wait for a place in a batch", names, buckets=_SECONDS, **kept
        )
        self._beside = Histogram(
            "ftaas_engine_batch_rows", "Rows of the batch that a request joined", buckets=_ROWS, **kept
        )
        waiting = Gauge("ftaas_engine_waiting", "Requests that wait for a place in a batch", **kept)
        waiting.set_function(lambda: engine.load_now()[0])
        running = Gauge("ftaas_engine_running", "Requests that are being answered", **kept)
        running.set_function(lambda: engine.load_now()[1])
        for name, said, value in (
            ("adapters", "Adapters in memory", lambda: engine.held_now()[0]),
            ("adapter_bytes", "Their size, bytes", lambda: engine.held_now()[1]),
            ("adapter_evictions", "Adapters that left memory for others", lambda: engine.evicted),
            (
                "adapter_returns",
                "Adapters that were asked for again, and came back",
                lambda: engine.brought_back,
            ),
        ):
            Gauge(f"ftaas_engine_{name}", said, **kept).set_function(value)
        self._start = Gauge("ftaas_engine_start_seconds", "Parts of the start", ("part",), **kept)

    def started(self, took: dict[str, float]) -> None:
        for part, seconds in took.items():
            self._start.labels(part).set(seconds)

    def refused(self, status: int, release: ServedRelease | None) -> None:
        self._requests.labels(*_names(release), str(status)).inc()

    def answered(self, release: ServedRelease, ticket: "Ticket", answer: "Generation") -> None:
        names = _names(release)
        self._requests.labels(*names, "200").inc()
        self._tokens.labels(*names, "prompt").inc(answer.prompt_tokens)
        self._tokens.labels(*names, "cached").inc(answer.reused)
        self._tokens.labels(*names, "completion").inc(len(answer.token_ids))
        self._queue.labels(*names).observe(ticket.queue_s)
        self._beside.observe(ticket.beside)


_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


def _names(release: ServedRelease | None) -> tuple[str, str]:
    return (release.project, release.release[:12]) if release else ("unknown", "")


def _json(body: dict[str, Any]) -> Response:
    return Response(to_json(body, inf_nan_mode="null"), media_type="application/json")


async def _answer(
    engine: Engine, meter: Meter, http: HttpRequest, shape: type[ChatRequest] | type[CompletionRequest]
) -> Response:
    try:
        request = shape.model_validate_json(await http.body())
    except ValidationError as found:
        raise invalid(found.errors(include_url=False)) from None
    answering = Answering(engine, request, meter.answered, meter.refused)
    try:
        await answering.begin()
        if request.stream:
            await answering.started()
    except BaseException:
        answering.cancel()
        raise
    if request.stream:
        return StreamingResponse(answering.events(), media_type="text/event-stream")
    async with incoming.while_there(http):
        return _json(await answering.whole())


def application(engine: Engine) -> FastAPI:
    """The application over an engine that may still be empty: it is loaded when the service starts."""
    app = FastAPI(title="ftaas", version="1", docs_url=None, redoc_url=None)
    meter = Meter(engine)
    _errors(app, meter)
    _pages(app, engine, meter)
    _private(app, engine)

    app.router.route_class = Straight

    @app.post("/v1/chat/completions", openapi_extra=described(ChatRequest))
    async def chat_completions(http: HttpRequest) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Answer a conversation."""
        return await _answer(engine, meter, http, ChatRequest)

    @app.post("/v1/completions", openapi_extra=described(CompletionRequest))
    async def completions(http: HttpRequest) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Answer a text; the model reads it as one user message."""
        return await _answer(engine, meter, http, CompletionRequest)

    app.router.route_class = APIRoute

    @app.post("/v1/embeddings", include_in_schema=False)
    async def embeddings() -> None:  # pyright: ignore[reportUnusedFunction]
        raise RequestRefused(
            400, "No model here makes embeddings: these are answers of fine-tuned models", "not_supported"
        )

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """The projects that answer here."""
        return {"object": "list", "data": [_card(r) for _, r in sorted(engine.releases.items())]}

    @app.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """One of them."""
        return _card(engine.release(model))

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "DELETE"], include_in_schema=False)
    async def nowhere(path: str, request: HttpRequest) -> None:  # pyright: ignore[reportUnusedFunction]
        raise RequestRefused(404, f"{request.method} /v1/{path} is not known; see /docs", "not_found")

    return app


class _Door:
    """Lets in who has the token. Plain ASGI: it costs next to nothing, and hides no hang-up."""

    def __init__(self, app: ASGIApp, token: str):
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in ("/livez", "/readyz"):
            given = dict(scope["headers"]).get(runtime.TOKEN_HEADER.encode(), b"")
            if not hmac.compare_digest(given, self._token):
                refused = JSONResponse(error(401, "This is an engine; ask the gateway", "engine_token"), 401)
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _private(app: FastAPI, engine: Engine) -> None:
    """The supervisor's own door: it alone says what is loaded, and none but the gateway asks.

    Without a token in the environment (a Bento that stands alone) the door is not there, and all may ask.
    """
    token = os.environ.get(runtime.TOKEN_VARIABLE, "")
    if not token:
        return

    app.add_middleware(_Door, token=token)

    @app.put("/releases", include_in_schema=False)
    async def releases(request: HttpRequest) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        state = RuntimeState.of((await request.body()).decode(), Path())
        await asyncio.to_thread(engine.load, state)
        return {"loaded": sorted(engine.releases), "problems": engine.problems}


def _card(release: ServedRelease) -> dict[str, Any]:
    return {
        "id": release.project,
        "object": "model",
        "created": 0,
        "owned_by": "ftaas",
        "release": release.release,
        "adapter_digest": release.adapter,
        "base": release.base,
    }


def _errors(app: FastAPI, meter: Meter) -> None:
    """Every error leaves in OpenAI's shape."""

    async def refused(_: HttpRequest, failure: Exception) -> Response:
        assert isinstance(failure, RequestRefused)
        meter.refused(failure.status, None)
        return JSONResponse(failure.body, failure.status)

    async def http(_: HttpRequest, failure: Exception) -> Response:
        assert isinstance(failure, HTTPException)
        return JSONResponse(error(failure.status_code, str(failure.detail)), failure.status_code)

    async def broken(_: HttpRequest, failure: Exception) -> Response:
        meter.refused(500, None)
        return JSONResponse(error(500, f"{type(failure).__name__}: {failure}"), 500)

    app.add_exception_handler(RequestRefused, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, broken)


def _pages(app: FastAPI, engine: Engine, meter: Meter) -> None:
    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:  # pyright: ignore[reportUnusedFunction]
        meter.started(engine.took)
        return Response(generate_latest(meter.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:  # pyright: ignore[reportUnusedFunction]
        # BentoML carries Swagger UI; FastAPI's default would fetch it from a CDN.
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="ftaas",
            swagger_js_url="/swagger/swagger-ui-bundle.js",
            swagger_css_url="/swagger/swagger-ui.css",
            swagger_favicon_url="/swagger/favicon-light-32x32.png",
        )

    from bentoml._internal import server

    assert server.__file__ is not None
    assets = Path(server.__file__).parent / "static_content"
    app.mount("/swagger", StaticFiles(directory=assets), name="swagger")
