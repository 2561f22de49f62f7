"""What `/openapi.json` says of answers: for people, for fuzzers, and true (`tests/test_attacks.py`).

Bodies that come in are described by their models (`straight.described`). Nothing here is checked on a
request's way.
"""

from typing import Any

from fastapi import FastAPI

_TEXT, _NUMBER, _FLAT = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "object"}


def _shape(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_ERROR = _shape(
    {
        "error": _shape(
            {"message": _TEXT, "type": _TEXT, "param": _or_null(_TEXT), "code": _or_null(_TEXT)},
        )
    }
)
_USAGE = _shape({"prompt_tokens": _NUMBER, "completion_tokens": _NUMBER, "total_tokens": _NUMBER})
_CHOICE = {"index": _NUMBER, "finish_reason": _TEXT, "logprobs": _or_null(_FLAT)}
_TOKENS = {"type": "array", "items": _NUMBER}
_MESSAGE = _shape({"role": {"const": "assistant"}, "content": _or_null(_TEXT)})
_MODEL = _shape(
    {"id": _TEXT, "object": {"const": "model"}, "owned_by": _TEXT, "created": _NUMBER},
    release=_TEXT,
    adapter_digest=_TEXT,
    base=_TEXT,
)
_REFUSALS = {
    400: "the request is wrong, or a guard refused it",
    401: "no valid key or token",
    403: "the key may not do this",
    404: "no such model, or no such answer",
    408: "the body came too slowly",
    413: "the body is too large",
    429: "too many requests or tokens: `Retry-After` says when to come again",
    502: "the engine failed",
    503: "nothing can answer now: `Retry-After` says when to come again",
}


def _completion(kind: str, **choice: Any) -> dict[str, Any]:
    choices = {"type": "array", "minItems": 1, "items": _shape({**_CHOICE, **choice}, token_ids=_TOKENS)}
    return _shape(
        {
            "id": _TEXT,
            "object": {"const": kind},
            "created": _NUMBER,
            "model": _TEXT,
            "choices": choices,
            "usage": _USAGE,
        },
        release=_TEXT,
        adapter_digest=_TEXT,
    )


def _answers(said: str, schema: dict[str, Any], *refusals: int, stream: bool = False) -> dict[int | str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if stream:
        content["text/event-stream"] = {}
    error = {"application/json": {"schema": _ERROR}}
    found: dict[int | str, Any] = {200: {"description": said, "content": content}}
    for status in refusals:
        found[status] = {"description": _REFUSALS[status], "content": error}
    return found


_ASKED = (400, 401, 403, 404, 408, 413, 429, 502, 503)
CHAT = _answers(
    "an answer; with `stream`, chunks of it as server-sent events up to `[DONE]`",
    _completion("chat.completion", message=_MESSAGE),
    *_ASKED,
    stream=True,
)
TEXT = _answers("as above", _completion("text_completion", text=_TEXT), *_ASKED, stream=True)
FEEDBACK = _answers(
    "it is kept",
    _shape({"object": {"const": "feedback"}, "response_id": _TEXT}),
    *(400, 401, 403, 404, 408, 413, 429, 503),
)
MODELS = _answers(
    "the projects",
    _shape({"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL}}),
    400,
    401,
)
MODEL = _answers("the project", _MODEL, 400, 401, 403, 404, 503)
NAMED = {"parameters": [{"name": "model", "in": "path", "required": True, "schema": _TEXT}]}


class Described(FastAPI):
    """Says, too, that a key is given."""

    def openapi(self) -> dict[str, Any]:
        """The description, made when it is first asked for."""
        if self.openapi_schema is None:
            made = super().openapi()
            given = {"type": "http", "scheme": "bearer", "description": "an API key or a token"}
            made.setdefault("components", {})["securitySchemes"] = {"key": given}
            made["security"] = [{"key": []}]
        return super().openapi()
