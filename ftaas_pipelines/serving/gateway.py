"""The public door: routes a request to the engine that serves its model, and streams the answer back."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from ftaas_pipelines.serving.engine_process import EngineProcess
from ftaas_pipelines.serving.openai_shapes import error, unknown_model

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host"}
_PROXIED = ("/docs", "/openapi.json", "/swagger/{path:path}", "/v1/{path:path}")


class Gateway:
    """Routes by `model`.

    Args:
        serving: the engines that answer now.
        status: the state of every wanted project, as in state.json.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        serving: Callable[[], Sequence[EngineProcess]],
        status: Callable[[], dict[str, dict[str, Any]]],
    ):
        self._client, self._serving, self._status = client, serving, status

    def application(self) -> Starlette:
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        return Starlette(
            routes=[
                Route("/", lambda _: RedirectResponse("/docs")),
                Route("/livez", lambda _: PlainTextResponse("\n")),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
                Route("/v1/models", self._models),
                Route("/v1/completions", self._by_model, methods=["POST"]),
                Route("/v1/chat/completions", self._by_model, methods=["POST"]),
                *(Route(path, self._any, methods=methods) for path in _PROXIED),
            ],
            exception_handlers={404: _not_found, 405: _not_found, 500: _broken},
        )

    async def _readyz(self, _: Request) -> Response:
        waiting = {p: s for p, s in self._status().items() if s["state"] != "running"}
        return JSONResponse({"waiting": waiting}, 503 if waiting or not self._serving() else 200)

    async def _by_model(self, request: Request) -> Response:
        body = await request.body()
        try:
            asked = json.loads(body)
            model = str(asked["model"])
        except (ValueError, KeyError, TypeError):
            return await self._any(request)  # the engine says what is wrong with it
        known = self._status().get(model)
        if known is None:
            refused = unknown_model(model, sorted(self._status()))
            return JSONResponse(refused.body, refused.status)
        engines = [e for e in self._serving() if model in e.loaded]
        if engines:
            # While a project moves to another runtime two engines have it: the wanted release wins.
            best = min(engines, key=lambda e: e.release_of(model) != known["release"])
            return await self._forward(best, request, body)
        return _unavailable(
            f"'{model}' is {known['state']}" + (f": {known['reason']}" if known["reason"] else "")
        )

    async def _any(self, request: Request) -> Response:
        wanted = request.path_params.get("path", "").removeprefix("models/")
        engines = sorted(self._serving(), key=lambda e: wanted not in e.loaded)
        if not engines:
            return _unavailable("nothing is served yet")
        return await self._forward(engines[0], request, await request.body())

    async def _forward(self, engine: EngineProcess, request: Request, body: bytes) -> Response:
        """Send a request on. Counted as in flight until its last byte has left."""
        headers = {k: v for k, v in request.headers.items() if k not in _HOP_BY_HOP}
        url = f"{engine.url}{request.url.path}" + (f"?{request.url.query}" if request.url.query else "")
        engine.in_flight += 1
        sent = self._client.build_request(request.method, url, headers=headers, content=body)
        try:
            answer = await self._client.send(sent, stream=True)
        except httpx.HTTPError as failure:
            engine.in_flight -= 1
            return _unavailable(f"the engine went away ({type(failure).__name__}); it is being restarted")
        except BaseException:
            engine.in_flight -= 1
            raise

        async def done() -> None:
            engine.in_flight -= 1
            await answer.aclose()

        kept = {k: v for k, v in answer.headers.items() if k not in _HOP_BY_HOP}
        return _Counted(_raw(answer), answer.status_code, kept, done)

    async def _pages(self, path: str) -> list[httpx.Response]:
        """One page of every engine; one that just went away is left out."""
        pages: list[httpx.Response] = []
        for engine in self._serving():
            with contextlib.suppress(httpx.HTTPError):
                pages.append(await self._client.get(f"{engine.url}{path}", timeout=10))
        return pages

    async def _models(self, _: Request) -> Response:
        cards = [card for page in await self._pages("/v1/models") for card in page.json()["data"]]
        return JSONResponse({"object": "list", "data": sorted(cards, key=lambda c: c["id"])})

    async def _metrics(self, _: Request) -> Response:
        """The engines' metrics as one page: their samples differ by project, their families do not."""
        lines: dict[str, list[str]] = {}
        for page in await self._pages("/metrics"):
            for family in text_string_to_metric_families(page.text):
                head = [f"# HELP {family.name} {family.documentation}", f"# TYPE {family.name} {family.type}"]
                rows = lines.setdefault(family.name, head)
                for sample in family.samples:
                    labels = ",".join(f'{k}="{v}"' for k, v in sample.labels.items())
                    rows.append(f"{sample.name}{{{labels}}} {sample.value}")
        return PlainTextResponse("\n".join(row for rows in lines.values() for row in rows) + "\n")


class _Counted(StreamingResponse):
    """A streamed answer that gives its engine back even when the caller hangs up half-way."""

    def __init__(self, content: AsyncIterator[bytes], status: int, headers: dict[str, str], done: Any):
        super().__init__(content, status, headers)
        self._done = BackgroundTask(done)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._done()


async def _raw(answer: httpx.Response) -> AsyncIterator[bytes]:
    async for piece in answer.aiter_raw():
        yield piece


def _unavailable(message: str) -> Response:
    return JSONResponse(error(503, message, "not_ready"), 503, {"Retry-After": "2"})


async def _broken(_: Request, failure: Exception) -> Response:
    return JSONResponse(error(500, f"{type(failure).__name__}: {failure}"), 500)


async def _not_found(request: Request, _: Exception) -> Response:
    message = f"{request.method} {request.url.path} is not known; see /docs"
    return JSONResponse(error(404, message, "not_found"), 404)
