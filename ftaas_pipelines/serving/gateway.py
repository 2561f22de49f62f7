"""The public door of an environment: its paths. What happens to a request is in `request.py`."""

import asyncio
import contextlib
import importlib.util
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.routing import APIRoute
from prometheus_client.parser import text_string_to_metric_families
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from ftaas_pipelines.serving import description, feedback, request
from ftaas_pipelines.serving.openai_shapes import ChatRequest, CompletionRequest, RequestRefused, error
from ftaas_pipelines.serving.request import Endpoint
from ftaas_pipelines.serving.standing import Standing
from ftaas_pipelines.serving.straight import Straight, described
from ftaas_pipelines.serving.supervision import Supervisor
from ftaas_pipelines.serving.upstream import FAILURES


def application(endpoint: Endpoint, supervisor: Supervisor) -> FastAPI:
    """The ASGI application of the gateway."""
    app = description.Described(title="ftaas", version="1", docs_url=None, redoc_url=None)
    _errors(app)
    _api(app, endpoint, supervisor)
    _pages(app)
    _probes(app, endpoint, supervisor)
    return app


def _api(app: FastAPI, endpoint: Endpoint, supervisor: Supervisor) -> None:
    app.router.route_class = Straight

    @app.post("/v1/chat/completions", responses=description.CHAT, openapi_extra=described(ChatRequest))
    async def chat_completions(http: Request) -> ASGIApp:  # pyright: ignore[reportUnusedFunction]
        """Answer a conversation."""
        return await request.answer(endpoint, http, "chat")

    @app.post("/v1/completions", responses=description.TEXT, openapi_extra=described(CompletionRequest))
    async def completions(http: Request) -> ASGIApp:  # pyright: ignore[reportUnusedFunction]
        """Answer a text; the model reads it as one user message."""
        return await request.answer(endpoint, http, "completion")

    @app.post("/v1/feedback", responses=description.FEEDBACK, openapi_extra=described(feedback.Given))
    async def give_feedback(http: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """A thumb, a correction or a comment on an answer, by its id."""
        return await feedback.take(endpoint, http)

    app.router.route_class = APIRoute

    @app.post("/v1/embeddings", include_in_schema=False)
    async def embeddings() -> None:  # pyright: ignore[reportUnusedFunction]
        raise RequestRefused(
            400, "No model here makes embeddings: these are answers of fine-tuned models", "not_supported"
        )

    @app.get("/v1/models", responses=description.MODELS)
    async def models(http: Request) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """The projects that answer here, and whose the caller may ask."""
        caller = endpoint.access.authenticate(http.headers.get("authorization"))
        cards = [_card(supervisor, p) for p in endpoint.routes.projects if caller.may("models", p)]
        return {"object": "list", "data": [card for card in cards if card]}

    @app.get("/v1/models/{model}", responses=description.MODEL, openapi_extra=description.NAMED)
    async def model(http: Request) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """One of them."""
        model: str = http.path_params["model"]
        caller = endpoint.access.authenticate(http.headers.get("authorization"))
        caller.require("models", model)
        endpoint.routes.require_known(model)
        endpoint.routes.choose(model, caller.id)
        card = _card(supervisor, model)
        assert card is not None
        return card


def _card(supervisor: Supervisor, project: str) -> dict[str, Any] | None:
    found = supervisor.target(project)
    if found is None:
        return None
    release = found[1]
    return {
        "id": project,
        "object": "model",
        "created": 0,
        "owned_by": "ftaas",
        "release": release.release,
        "adapter_digest": release.adapter,
        "base": release.base,
    }


def _errors(app: FastAPI) -> None:
    """Every error leaves in OpenAI's shape."""

    async def refused(_: Request, failure: Exception) -> Response:
        assert isinstance(failure, RequestRefused)
        return JSONResponse(failure.body, failure.status, failure.headers)

    async def http(asked: Request, failure: Exception) -> Response:
        assert isinstance(failure, HTTPException)
        known = failure.status_code not in (404, 405)
        said = str(failure.detail) if known else f"{asked.method} {asked.url.path} is not known; see /docs"
        body = error(failure.status_code, said, None if known else "not_found")
        headers = dict(failure.headers or {})
        return JSONResponse(body, failure.status_code, headers)

    async def broken(_: Request, failure: Exception) -> Response:
        return JSONResponse(error(500, f"{type(failure).__name__}; see the log", "internal"), 500)

    app.add_exception_handler(RequestRefused, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, broken)


def _pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def home() -> Response:  # pyright: ignore[reportUnusedFunction]
        return RedirectResponse("/docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:  # pyright: ignore[reportUnusedFunction]
        # BentoML carries Swagger UI; FastAPI's default would fetch it from a CDN.
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="ftaas",
            swagger_js_url="/swagger/swagger-ui-bundle.js",
            swagger_css_url="/swagger/swagger-ui.css",
            swagger_favicon_url="/swagger/favicon-light-32x32.png",
        )

    found = importlib.util.find_spec("bentoml")  # found, not loaded: it is heavy, and no part of this process
    assert found is not None and found.origin is not None
    assets = Path(found.origin).parent / "_internal" / "server" / "static_content"
    app.mount("/swagger", StaticFiles(directory=assets), name="swagger")


def _probes(app: FastAPI, endpoint: Endpoint, supervisor: Supervisor) -> None:
    endpoint.meter.registry.register(Standing(supervisor, endpoint.log, endpoint.traces))

    @app.get("/livez", include_in_schema=False)
    async def livez() -> Response:  # pyright: ignore[reportUnusedFunction]
        return PlainTextResponse("\n")

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:  # pyright: ignore[reportUnusedFunction]
        waiting = {p: s for p, s in supervisor.status().items() if s["state"] != "running"}
        return JSONResponse({"waiting": waiting}, 503 if waiting or not supervisor.engines() else 200)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:  # pyright: ignore[reportUnusedFunction]
        return PlainTextResponse(endpoint.meter.page() + _joined(await _engine_pages(endpoint, supervisor)))


async def _engine_pages(endpoint: Endpoint, supervisor: Supervisor) -> list[str]:
    """The metrics of every engine of ours; one that just went away is left out."""

    async def page(url: str, headers: dict[str, str]) -> str:
        with contextlib.suppress(*FAILURES):
            async with endpoint.session.get(f"{url}/metrics", headers=headers) as answer:
                return await answer.text()
        return ""

    return list(await asyncio.gather(*(page(e.url, e.headers) for e in supervisor.engines() if e.ours)))


def _joined(pages: list[str]) -> str:
    """Engines' metrics as one page, told apart by a label: a family stands once."""
    lines: dict[str, list[str]] = {}
    for number, page in enumerate(pages):
        for family in text_string_to_metric_families(page):
            name = family.name + ("_total" if family.type == "counter" else "")
            head = [f"# HELP {name} {family.documentation}", f"# TYPE {name} {family.type}"]
            rows = lines.setdefault(name, head)
            for sample in family.samples:
                labels = ",".join(f'{k}="{v}"' for k, v in {**sample.labels, "engine": number}.items())
                rows.append(f"{sample.name}{{{labels}}} {sample.value}")
    return "".join(f"{row}\n" for rows in lines.values() for row in rows)
