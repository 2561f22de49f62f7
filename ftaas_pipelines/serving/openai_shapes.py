"""OpenAI's requests and errors, as far as this platform speaks them. Answers: `openai_answers.py`."""

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import to_json

_MOST_SAID = 300  # characters of an error: it repeats what was sent
_MOST_FORM = 64 << 10  # characters of tools, and of a schema
_KINDS = {429: "rate_limit_error", 403: "permission_error"}


class RequestRefused(Exception):
    """A request that gets an error in OpenAI's shape.

    Args:
        headers: sent along, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}
        self.body = error(status, message, code, param)


def error(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The body of an error response."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def invalid(errors: Sequence[Any]) -> RequestRefused:
    """400: what pydantic found wrong with a body, the first of it."""
    first = errors[0]
    place = [str(p) for p in first["loc"] if p != "body"]
    message = str(first["msg"]).removeprefix("Value error, ")
    text = (f"{'.'.join(place)}: {message}" if place else message)[:_MOST_SAID]
    return RequestRefused(400, text, "invalid_value", place[0] if place else None)


def unknown_model(model: str, known: list[str]) -> RequestRefused:
    """404: no release of this name is served here."""
    return RequestRefused(
        404,
        f"The model '{model}' does not exist here; use {', '.join(known) or 'none: nothing is deployed'}",
        "model_not_found",
        "model",
    )


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    url: str = Field(description="a data URI: data:image/png;base64,…")


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Called(BaseModel):
    """A tool's name, and its arguments as JSON text."""

    name: str = Field(min_length=1, max_length=64)
    arguments: str = ""

    @field_validator("arguments")
    @classmethod
    def _object(cls, text: str) -> str:
        try:
            known = isinstance(json.loads(text or "{}"), dict)
        except (ValueError, RecursionError):
            known = False
        if not known:
            raise ValueError("'arguments' is a JSON object, as text")
        return text or "{}"


class ToolCall(BaseModel):
    id: str = ""
    type: Literal["function"] = "function"
    function: Called


class ChatMessage(BaseModel):
    """One turn. Unknown keys (`name`, `refusal`) are read over, as OpenAI's clients send them."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = Field(default=None, max_length=128)
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "ChatMessage":
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only the assistant calls tools")
        if self.content is None and not self.tool_calls:
            raise ValueError("'content' is missing")
        return self

    def plain(self) -> dict[str, Any]:
        """The turn as a prompt holds it: its text, and its images and calls where it has some."""
        role = "system" if self.role == "developer" else self.role
        if self.tool_calls:
            calls = [call.model_dump() for call in self.tool_calls]
            for call in calls:  # templates write the arguments themselves
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
            return {**self._said(role), "tool_calls": calls}
        if self.role == "tool" and self.tool_call_id:
            return {**self._said(role), "tool_call_id": self.tool_call_id}
        return self._said(role)

    def _said(self, role: str) -> dict[str, Any]:
        if self.content is None or isinstance(self.content, str):
            return {"role": role, "content": self.content or ""}
        text = "".join(part.text for part in self.content if isinstance(part, TextPart))
        urls = [part.image_url.url for part in self.content if isinstance(part, ImagePart)]
        images = [{"ref": url, "sha256": hashlib.sha256(url.encode()).hexdigest()} for url in urls]
        return {"role": role, "content": text, **({"images": images} if images else {})}


class JsonSchema(BaseModel):
    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] = Field(alias="schema", default_factory=dict)


class ResponseFormat(BaseModel):
    """What the answer is held to: nothing, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_given(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("'json_schema' belongs to type json_schema, and only there")
        return self

    @property
    def fits(self) -> dict[str, Any] | None:
        """The JSON schema that an answer must fit; None: any text may come."""
        if self.json_schema:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class Function(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    type: Literal["function"]
    function: Function


class NamedFunction(BaseModel):
    name: str


class NamedTool(BaseModel):
    type: Literal["function"]
    function: NamedFunction


class StreamOptions(BaseModel):
    include_usage: bool = False


# What changes an answer elsewhere, and the value at which it changes none.
_NOT_DONE = {
    **dict.fromkeys(
        ("tools", "response_format", "functions", "function_call", "logit_bias", "echo", "suffix")
    ),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "min_p"), 0),
    **{"best_of": 1, "top_k": -1, "repetition_penalty": 1, "modalities": ["text"]},
}


class Request(BaseModel):
    """What both completions share. Temperature is 0 unless given: greedy, as evaluated."""

    model_config = ConfigDict(extra="allow")

    model: str
    max_tokens: int | None = Field(default=None, ge=1, description="also bounded by the release")
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    n: int = Field(default=1, ge=1, le=16)
    stream: bool = False
    # Made anew: pydantic would copy a default deeply, with every request, for a quarter of a millisecond.
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    user: str | None = Field(default=None, max_length=256, description="whose requests stay with one variant")
    return_token_ids: bool = Field(default=False, description="our addition: the answer's token ids")

    @field_validator("temperature", "top_p", "n", "stream", "stream_options", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any, info: Any) -> Any:
        field = cls.model_fields[info.field_name]
        return field.get_default(call_default_factory=True) if value is None else value

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Request":
        """What would change the answer and is not done here is refused, never silently dropped."""
        extra = self.model_extra or {}
        for name, neutral in _NOT_DONE.items():
            if (value := extra.get(name)) and value != neutral:
                raise ValueError(f"'{name}' is not supported")
        return self

    @property
    def stops(self) -> list[str]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [s for s in stops if s]

    @property
    def scores(self) -> int | None:
        """How many likeliest tokens to report with each token's log probability; None: none at all."""
        return None


class ChatRequest(Request):
    messages: list[ChatMessage] = Field(min_length=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The tools that may be called, as templates and schemas read them."""
        if not self.tools or self.tool_choice == "none":
            return []
        chosen = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        tools = [tool.model_dump(exclude_none=True) for tool in self.tools]
        return [tool for tool in tools if chosen in (None, tool["function"]["name"])]

    @property
    def must_call(self) -> bool:
        """Whether the answer is a call of a tool, and nothing else."""
        return bool(self.offered) and (
            self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)
        )

    @model_validator(mode="after")
    def _forms_are_bounded(self) -> "ChatRequest":
        for name in ("tools", "response_format"):
            value = getattr(self, name)
            if value and len(to_json(value)) > _MOST_FORM:
                raise ValueError(f"'{name}' has more than {_MOST_FORM} characters of JSON")
        return self

    @model_validator(mode="after")
    def _tools_agree(self) -> "ChatRequest":
        if isinstance(self.tool_choice, NamedTool) and not self.offered:
            raise ValueError("'tool_choice' names a tool that is not among 'tools'")
        if self.tool_choice == "required" and not self.offered:
            raise ValueError("'tool_choice' requires a tool, and 'tools' has none")
        if self.must_call and self.response_format and self.response_format.fits is not None:
            raise ValueError("an answer is JSON of 'response_format' or the call of a tool, not both")
        return self

    @property
    def scores(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _images_inside(self) -> "ChatRequest":
        parts = [part for m in self.messages if isinstance(m.content, list) for part in m.content]
        if any(isinstance(p, ImagePart) and not p.image_url.url.startswith("data:") for p in parts):
            raise ValueError("nothing is fetched for a caller: write an image as data:image/png;base64,…")
        return self

    def prompt(self) -> list[dict[str, Any]]:
        return [message.plain() for message in self.messages]


class CompletionRequest(Request):
    """A text completion: the prompt is put to the model as one user message."""

    prompt: str | list[str]
    logprobs: int | None = Field(default=None, ge=0, le=5)

    @property
    def scores(self) -> int | None:
        return self.logprobs

    @field_validator("prompt")
    @classmethod
    def _one(cls, prompt: str | list[str]) -> str:
        texts = [prompt] if isinstance(prompt, str) else prompt
        if len(texts) != 1:
            raise ValueError("exactly one prompt a request")
        return texts[0]

    def messages_of(self) -> list[dict[str, Any]]:
        return [{"role": "user", "content": str(self.prompt)}]
