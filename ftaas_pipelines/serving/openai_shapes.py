"""OpenAI's request, response and error shapes, as far as this platform speaks them."""

import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_KINDS = {429: "rate_limit_error", 403: "permission_error"}


if TYPE_CHECKING:
    from ftaas_pipelines.inference.batch import Generation


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
    text = f"{'.'.join(place)}: {message}" if place else message
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


class ChatMessage(BaseModel):
    """One turn. Unknown keys (`name`, `refusal`) are read over, as OpenAI's clients send them."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part]

    def plain(self) -> dict[str, Any]:
        """The turn as a prompt holds it: its text, and its images where it shows some."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return {"role": role, "content": self.content}
        text = "".join(part.text for part in self.content if isinstance(part, TextPart))
        urls = [part.image_url.url for part in self.content if isinstance(part, ImagePart)]
        images = [{"ref": url, "sha256": hashlib.sha256(url.encode()).hexdigest()} for url in urls]
        return {"role": role, "content": text, **({"images": images} if images else {})}


class StreamOptions(BaseModel):
    include_usage: bool = False


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
    stream_options: StreamOptions = StreamOptions()
    user: str | None = Field(default=None, max_length=256, description="whose requests stay with one variant")
    return_token_ids: bool = Field(default=False, description="our addition: the answer's token ids")

    @field_validator("temperature", "top_p", "n", "stream", "stream_options", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any, info: Any) -> Any:
        return cls.model_fields[info.field_name].default if value is None else value

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Request":
        """What would change the answer and is not done here is refused, never silently dropped."""
        extra = self.model_extra or {}
        plain_text: dict[str, Any] = {"type": "text"}
        for name in ("tools", "functions", "logit_bias", "echo", "suffix"):
            if extra.get(name):
                raise ValueError(f"'{name}' is not supported")
        if extra.get("response_format") not in (None, plain_text):
            raise ValueError("'response_format' other than text is not supported")
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


TextOf = Callable[[list[int]], str]


class Shape:
    """Builds the bodies of one answer: chat or text, whole or in chunks."""

    def __init__(self, chat: bool, model: str, adapter_digest: str, release: str):
        self.chat = chat
        self.id = ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex
        self._common = {"id": self.id, "created": int(time.time()), "model": model}
        self._ours = {"adapter_digest": adapter_digest, "release": release}

    def whole(self, answers: "Sequence[Generation]", request: Request, text_of: TextOf) -> dict[str, Any]:
        """The body of all answers to a request, a choice each."""
        choices: list[dict[str, Any]] = []
        for index, answer in enumerate(answers):
            scores = self.scores(answer, request, text_of)
            choice: dict[str, Any] = {
                "index": index,
                "finish_reason": answer.finish_reason,
                "logprobs": scores,
            }
            if self.chat:
                choice["message"] = {"role": "assistant", "content": answer.text, "refusal": None}
            else:
                choice["text"] = answer.text
            if request.return_token_ids:
                choice["token_ids"] = answer.token_ids
            choices.append(choice)
        usage = usage_of(answers[0].prompt_tokens, sum(len(a.token_ids) for a in answers))
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._common, "object": kind, "choices": choices, "usage": usage, **self._ours}

    def scores(self, answer: "Generation", request: Request, text_of: TextOf) -> dict[str, Any] | None:
        """Log probabilities (nats) of an answer's tokens in OpenAI's shape; None where not asked for."""
        if answer.scores is None:
            return None
        if self.chat:
            return {
                "content": [
                    {
                        **_scored(text_of([s.token]), s.logprob),
                        "top_logprobs": [_scored(text_of([token]), value) for token, value in s.top],
                    }
                    for s in answer.scores
                ],
                "refusal": None,
            }
        tokens = [text_of([s.token]) for s in answer.scores]
        starts = [0, *accumulate(len(t) for t in tokens)][: len(tokens)]
        return {
            "tokens": tokens,
            "token_logprobs": [s.logprob for s in answer.scores],
            "top_logprobs": [{text_of([t]): v for t, v in s.top} for s in answer.scores],
            "text_offset": starts,
        }

    def chunk(
        self,
        index: int,
        text: str | None,
        finish: str | None = None,
        scores: dict[str, Any] | None = None,
        first: bool = False,
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": finish, "logprobs": scores}
        if self.chat:
            role = {"role": "assistant"} if first else {}
            choice["delta"] = {**role, **({} if text is None else {"content": text})}
        else:
            choice["text"] = text or ""
        return {**self._chunk(), "choices": [choice]}

    def usage_chunk(self, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
        return {**self._chunk(), "choices": [], "usage": usage_of(prompt_tokens, completion_tokens)}

    def _chunk(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._common, "object": kind, **self._ours}


def _scored(token: str, value: float) -> dict[str, Any]:
    # A token may be part of a character: its bytes are what the text of it alone shows.
    return {"token": token, "logprob": value, "bytes": list(token.encode())}


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
