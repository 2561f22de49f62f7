"""The HTTP application inside the Bento: OpenAI's API over the loaded releases.

Services do not call it: the gateway does, which knows callers, limits and guards. A Bento that stands
alone (an image) is called directly.
"""

import asyncio
import hmac
import os
import secrets
from collections.abc import AsyncIterator
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

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.serving import runtime
from ftaas_pipelines.serving.engine import Engine
from ftaas_pipelines.serving.openai_shapes import (
    ChatRequest,
    CompletionRequest,
    RequestRefused,
    Shape,
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

    def refused(self, status: int, release: ServedRelease | None) -> None:
        self._requests.labels(*_names(release), str(status)).inc()

    def answered(self, release: ServedRelease, ticket: "Ticket", answer: "Generation") -> None:
        names = _names(release)
        self._requests.labels(*names, "200").inc()
        self._tokens.labels(*names, "prompt").inc(answer.prompt_tokens)
        self._tokens.labels(*names, "completion").inc(len(answer.token_ids))
        self._queue.labels(*names).observe(ticket.queue_s)
        self._beside.observe(ticket.beside)


_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


def _names(release: ServedRelease | None) -> tuple[str, str]:
    return (release.project, release.release[:12]) if release else ("unknown", "")


class Answering:
    """One request from its release to its last byte."""

    def __init__(self, engine: Engine, meter: Meter, request: ChatRequest | CompletionRequest):
        self.engine, self.meter, self.request = engine, meter, request
        self.release = engine.release(request.model)
        chat = isinstance(request, ChatRequest)
        self.shape = Shape(chat, request.model, self.release.adapter, self.release.release)
        self.tickets: list[Ticket] = []
        self._pieces: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        self._first: list[tuple[int, Any]] = []

    async def begin(self) -> None:
        """Hand the prompt in, once for each answer asked for.

        Raises:
            RequestRefused: the release cannot take it.
        """
        from ftaas_pipelines.inference.batch import Sampling

        request = self.request
        prompt = request.prompt() if isinstance(request, ChatRequest) else request.messages_of()
        # torch wants a seed below 2**63; without one every sampled answer is a fresh draw.
        seed = secrets.randbits(62) if request.seed is None else request.seed
        wanted = request.max_completion_tokens or request.max_tokens or self.release.max_new_tokens
        loop = asyncio.get_running_loop()

        def tell(index: int, piece: Any) -> None:  # in the scheduler's thread
            loop.call_soon_threadsafe(self._pieces.put_nowait, (index, piece))

        for i in range(request.n):
            sampling = Sampling(
                request.temperature, request.top_p, seed + i, tuple(request.stops), request.scores
            )
            on_text = (lambda text, i=i: tell(i, text)) if request.stream else None
            ticket = await self.engine.submit(self.release, prompt, wanted, sampling, on_text)
            ticket.result.add_done_callback(lambda done, i=i: tell(i, done))
            self.tickets.append(ticket)

    def cancel(self) -> None:
        for ticket in self.tickets:
            ticket.cancel()

    async def whole(self) -> dict[str, Any]:
        """The body of the answer."""
        try:
            for ticket in self.tickets:
                await asyncio.wrap_future(ticket.result)
        except BaseException as failure:
            self.cancel()
            raise self._refusal(failure) from failure
        answers = [self._done(ticket) for ticket in self.tickets]
        return {
            **self.shape.whole(answers, self.request, self.engine.text_of(self.release)),
            **self._timing(),
        }

    def _done(self, ticket: "Ticket") -> "Generation":
        answer = self._fits(ticket.result.result())
        self.meter.answered(self.release, ticket, answer)
        return answer

    def _fits(self, answer: "Generation") -> "Generation":
        limit = self.engine.context_tokens(self.release)
        if limit is not None and answer.prompt_tokens >= limit:
            raise RequestRefused(
                400,
                f"The prompt has {answer.prompt_tokens} tokens, this model's context {limit}; shorten it",
                "context_length_exceeded",
                "messages",
            )
        return answer

    def _timing(self) -> dict[str, Any]:
        """Our addition: where the time went, ms, and rows that were answered together."""
        first = self.tickets[0]
        timing = {
            "queue_ms": round(first.queue_s * 1000, 3),
            "first_token_ms": round(first.first_token_s * 1000, 3),
            "total_ms": round(max(t.total_s for t in self.tickets) * 1000, 3),
            "beside": first.beside,
        }
        return {"timing": timing}

    @staticmethod
    def _refusal(failure: BaseException) -> BaseException:
        if isinstance(failure, InputInvalid):
            return RequestRefused(400, str(failure), "invalid_image", "messages")
        return failure

    async def started(self) -> None:
        """Wait for the first piece of text: what is wrong with the request shows before a stream begins.

        Raises:
            RequestRefused: the prompt is too long, or cannot be read.
        """
        i, piece = await self._pieces.get()
        if not isinstance(piece, str):
            try:
                self._fits(self.tickets[i].result.result())
            except BaseException as failure:
                self.cancel()
                raise self._refusal(failure) from failure
        self._first = [(i, piece)]

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events: a chunk for each piece of text, the finish reasons, `[DONE]`."""
        left = len(self.tickets)
        prompt_tokens = completion_tokens = 0
        try:
            for i in range(left):
                yield _event(self.shape.chunk(i, "", first=True))
            while left:
                i, piece = self._first.pop() if self._first else await self._pieces.get()
                if isinstance(piece, str):
                    yield _event(self.shape.chunk(i, piece))
                    continue
                left -= 1
                answer = self._done(self.tickets[i])
                prompt_tokens = answer.prompt_tokens
                completion_tokens += len(answer.token_ids)
                scores = self.shape.scores(answer, self.request, self.engine.text_of(self.release))
                yield _event(self.shape.chunk(i, None, answer.finish_reason, scores))
            usage = self.shape.usage_chunk(prompt_tokens, completion_tokens)
            if self.request.stream_options.include_usage:
                yield _event({**usage, **self._timing()})
            yield b"data: [DONE]\n\n"
        except Exception as failure:
            refusal = self._refusal(failure)
            if not isinstance(refusal, RequestRefused):
                refusal = RequestRefused(500, f"{type(failure).__name__}: {failure}")
            self.meter.refused(refusal.status, self.release)
            yield _event(refusal.body)
        finally:  # also when the caller hung up
            self.cancel()


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + to_json(body, inf_nan_mode="null") + b"\n\n"


def _json(body: dict[str, Any]) -> Response:
    return Response(to_json(body, inf_nan_mode="null"), media_type="application/json")


class _Gone(Exception):
    """The caller hung up before the answer was there."""


async def _unless_gone(http: HttpRequest, answering: Answering) -> dict[str, Any]:
    """The whole answer; generating stops as soon as the caller hangs up."""
    work = asyncio.ensure_future(answering.whole())
    gone = asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise _Gone
    finally:
        gone.cancel()
        if not work.done():
            answering.cancel()
            work.cancel()


async def _gone(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _answer(
    engine: Engine, meter: Meter, http: HttpRequest, shape: type[ChatRequest] | type[CompletionRequest]
) -> Response:
    try:
        request = shape.model_validate_json(await http.body())
    except ValidationError as found:
        raise invalid(found.errors(include_url=False)) from None
    answering = Answering(engine, meter, request)
    try:
        await answering.begin()
        if request.stream:
            await answering.started()
    except BaseException:
        answering.cancel()
        raise
    if request.stream:
        return StreamingResponse(answering.events(), media_type="text/event-stream")
    try:
        return _json(await _unless_gone(http, answering))
    except _Gone:
        return Response(status_code=499)  # nobody reads it


def application(engine: Engine) -> FastAPI:
    """The application over an engine that may still be empty: it is loaded when the service starts."""
    app = FastAPI(title="ftaas", version="1", docs_url=None, redoc_url=None)
    meter = Meter(engine)
    _errors(app, meter)
    _pages(app, meter)
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
