"""The HTTP application inside the Bento: OpenAI's API over the loaded releases."""

import json
import queue
import secrets
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.staticfiles import StaticFiles

from ftaas_pipelines.serving.engine import Engine
from ftaas_pipelines.serving.openai_shapes import ChatRequest, CompletionRequest, RequestRefused, Shape, error
from ftaas_pipelines.serving.runtime import ServedRelease


class Meter:
    """What `/metrics` shows. Unknown model names share one label: callers cannot grow the table."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("project", "release")
        self._requests = Counter(
            "ftaas_requests", "Answered requests", (*labels, "status"), registry=self.registry
        )
        self._seconds = Histogram("ftaas_request_seconds", "Time to answer", labels, registry=self.registry)
        self._tokens = Counter(
            "ftaas_tokens", "Tokens read and written", (*labels, "kind"), registry=self.registry
        )

    def refused(self, status: int, release: ServedRelease | None) -> None:
        self._requests.labels(*_names(release), str(status)).inc()

    def answered(self, release: ServedRelease, started: float, prompt: int, completion: int) -> None:
        names = _names(release)
        self._requests.labels(*names, "200").inc()
        self._seconds.labels(*names).observe(time.monotonic() - started)
        self._tokens.labels(*names, "prompt").inc(prompt)
        self._tokens.labels(*names, "completion").inc(completion)


def _names(release: ServedRelease | None) -> tuple[str, str]:
    return (release.project, release.release[:12]) if release else ("unknown", "")


class Answering:
    """One request from its release to its last byte."""

    def __init__(self, engine: Engine, meter: Meter, request: ChatRequest | CompletionRequest):
        self.engine, self.meter, self.request = engine, meter, request
        self.started = time.monotonic()
        self.release = engine.release(request.model)
        chat = isinstance(request, ChatRequest)
        self.shape = Shape(chat, request.model, self.release.adapter, self.release.release)

    def _generate(self, on_text: Any = None) -> Any:
        from ftaas_pipelines.inference.decoding import Sampling

        request = self.request
        prompt = request.prompt() if isinstance(request, ChatRequest) else request.messages_of()
        # torch wants a seed below 2**63; without one every sampled answer is a fresh draw.
        seed = secrets.randbits(62) if request.seed is None else request.seed
        sampling = Sampling(request.temperature, request.top_p, seed, tuple(request.stops))
        wanted = request.max_completion_tokens or request.max_tokens
        room = self.engine.room(self.release, wanted)
        answer = self.engine.generate(self.release, prompt, room, sampling, on_text)
        self.engine.log(self.shape.id, self.release, answer)
        tokens = len(answer.token_ids)
        self.meter.answered(self.release, self.started, answer.prompt_tokens, tokens)
        return answer

    def whole(self) -> dict[str, Any]:
        a = self._generate()
        with_ids = self.request.return_token_ids
        return self.shape.whole(a.text, a.finish_reason, a.prompt_tokens, a.token_ids, with_ids)

    def events(self) -> Iterator[str]:
        """Server-sent events: a chunk for each piece of text, the finish reason, `[DONE]`."""
        pieces: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def work() -> None:
            try:
                pieces.put(self._generate(lambda _, text: pieces.put(text)))
            except RequestRefused as refused:
                pieces.put(refused)
            except Exception as failure:
                traceback.print_exc()
                pieces.put(RequestRefused(500, f"{type(failure).__name__}: {failure}"))

        threading.Thread(target=work, daemon=True, name=self.shape.id).start()
        yield _event(self.shape.chunk("", first=True))
        while isinstance(piece := pieces.get(), str):
            yield _event(self.shape.chunk(piece))
        if isinstance(piece, RequestRefused):
            self.meter.refused(piece.status, self.release)
            yield _event(piece.body)
            return
        yield _event(self.shape.chunk(None, piece.finish_reason))
        if self.request.stream_options.include_usage:
            yield _event(self.shape.usage_chunk(piece.prompt_tokens, len(piece.token_ids)))
        yield "data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def application(engine: Engine) -> FastAPI:
    """The application over an engine that may still be empty: it is loaded when the service starts."""
    app = FastAPI(title="ftaas", version="1", docs_url=None, redoc_url=None)
    meter = Meter()
    _errors(app, meter)
    _pages(app, meter)

    def answer(request: ChatRequest | CompletionRequest) -> Response:
        answering = Answering(engine, meter, request)
        if request.stream:
            return StreamingResponse(answering.events(), media_type="text/event-stream")
        return JSONResponse(answering.whole())

    @app.post("/v1/chat/completions")
    def chat_completions(request: ChatRequest) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Answer a conversation."""
        return answer(request)

    @app.post("/v1/completions")
    def completions(request: CompletionRequest) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Answer a text; the model reads it as one user message."""
        return answer(request)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """The projects that answer here."""
        return {"object": "list", "data": [_card(r) for _, r in sorted(engine.releases.items())]}

    @app.get("/v1/models/{model}")
    def model(model: str) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """One of them."""
        return _card(engine.release(model))

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "DELETE"], include_in_schema=False)
    def nowhere(path: str, request: HttpRequest) -> None:  # pyright: ignore[reportUnusedFunction]
        raise RequestRefused(404, f"{request.method} /v1/{path} is not known; see /docs", "not_found")

    return app


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

    async def invalid(_: HttpRequest, failure: Exception) -> Response:
        assert isinstance(failure, RequestValidationError)
        meter.refused(400, None)
        first = failure.errors()[0]
        place = [str(p) for p in first["loc"] if p != "body"]
        message = first["msg"].removeprefix("Value error, ")
        text = f"{'.'.join(place)}: {message}" if place else message
        return JSONResponse(error(400, text, "invalid_value", place[0] if place else None), 400)

    async def http(_: HttpRequest, failure: Exception) -> Response:
        assert isinstance(failure, HTTPException)
        return JSONResponse(error(failure.status_code, str(failure.detail)), failure.status_code)

    async def broken(_: HttpRequest, failure: Exception) -> Response:
        meter.refused(500, None)
        return JSONResponse(error(500, f"{type(failure).__name__}: {failure}"), 500)

    app.add_exception_handler(RequestRefused, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, broken)


def _pages(app: FastAPI, meter: Meter) -> None:
    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:  # pyright: ignore[reportUnusedFunction]
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
