"""Routes that FastAPI describes, but does not stand in the way of."""

from collections.abc import Callable
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import Receive, Scope, Send


class Straight(APIRoute):
    """A route whose endpoint takes the HTTP request and gives a response, or any application that sends one.

    FastAPI's own handling (dependencies, exit stacks, reading and writing bodies) costs as much as a
    request's whole way through the gateway.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any):
        options["response_model"] = None  # it is the endpoint that writes the body
        super().__init__(path, endpoint, **options)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)  # 405
            return
        response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


def described(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads a body of this model by itself."""
    schema = model.model_json_schema(ref_template=f"#/components/schemas/{model.__name__}_{{model}}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inline(schema)}}}}


def _inline(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with its definitions written where they are used: none of these is recursive."""
    known: dict[str, Any] = schema.pop("$defs", {})

    def filled(part: Any) -> Any:
        if isinstance(part, list):
            return [filled(p) for p in part]  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return filled(known[part["$ref"].rpartition("_")[2]])
        return {k: filled(v) for k, v in part.items() if k != "discriminator"}

    return filled(schema)
