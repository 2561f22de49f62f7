"""An OpenAI-compatible chat endpoint: what is asked, what it costs, and what can be wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import pydantic

from ftaas_pipelines.data.sources import secrets
from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.projects.dataset import OpenUrl, Secret

RETRIES = 5  # of a request that met 408, 409, 429, a 5xx or a broken connection
_GO_ON = "then run the same command again: it goes on"

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Prices:
    """US dollars per 1,000 tokens."""

    prompt: float = 0.0
    completion: float = 0.0


@dataclass
class Usage:
    """What some calls used.

    Attributes:
        unmetered: calls whose tokens the endpoint did not say; their cost is unknown and counts as nothing.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unmetered: int = 0
    cost_usd: float = 0.0

    def add(self, other: "Usage") -> None:
        self.calls += other.calls
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.unmetered += other.unmetered
        self.cost_usd += other.cost_usd


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        text: what it says.
        fault: why it is of no use: `refused_by_endpoint`, `empty_reply`, or `cut_off` where it ran into
            the limit of tokens and only its beginning is there; else empty.
        detail: the endpoint's own code for a refusal.
    """

    text: str
    fault: str
    usage: Usage
    detail: str = ""


@dataclass(frozen=True)
class Endpoint:
    """A model behind a base URL such as http://127.0.0.1:8000/v1.

    Attributes:
        key: env:NAME or file:/path of the API key; empty where none is asked for.
        max_tokens: of one reply; None leaves it to the endpoint.
        timeout_s: of one request.
    """

    url: str
    model: str
    key: str = ""
    prices: Prices = Prices()
    max_tokens: int | None = None
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        """Refuses secrets where they would be seen.

        Raises:
            InputInvalid: the URL is none or holds a secret, or the key is not named by its place.
        """
        if urlsplit(self.url).scheme not in ("http", "https") or not self.host:
            raise InputInvalid("is not a URL", "--endpoint", do="write http://HOST:PORT/v1")
        # Neither value is repeated in the error: it may be the secret.
        if _unfit(OpenUrl, self.url):
            raise InputInvalid("a secret may not stand in a URL", "--endpoint", do="use --api-key env:NAME")
        if self.key and _unfit(Secret, self.key):
            do = "put the key into a variable or a file and name that"
            raise InputInvalid("must name env:VARIABLE or file:/path, never the key", "--api-key", do=do)
        if self.key:
            secrets.value(self.key)  # said now, not at the first call

    @property
    def host(self) -> str:
        """Host and port, without a user's name."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def generator(self) -> str:
        """What a row names as its generator."""
        return f"{self.model}@{self.host}"

    @cached_property
    def _client(self) -> Any:
        import openai

        return openai.OpenAI(
            base_url=self.url,
            api_key=secrets.value(self.key) if self.key else "none",  # never one that the environment holds
            max_retries=RETRIES,  # its backoff heeds Retry-After, up to two minutes
            timeout=self.timeout_s,
        )

    def ask(self, messages: Messages, temperature: float, seed: int) -> Reply:
        """One answer; faults of the connection and rate limits are tried again, `RETRIES` times.

        Raises:
            InputInvalid: the key, the model or the URL is wrong.
            FtaasError: the endpoint cannot be reached, is too busy, fails, or speaks something else.
        """
        import openai

        options: dict[str, Any] = {"max_completion_tokens": self.max_tokens} if self.max_tokens else {}
        try:
            answer = self._client.chat.completions.create(
                model=self.model, messages=list(messages), temperature=temperature, seed=seed, **options
            )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return Reply("", "refused_by_endpoint", Usage(calls=1), _code(error))
        except openai.OpenAIError as error:
            raise self._explained(error) from None
        choices = getattr(answer, "choices", None)
        if not choices:
            do = "mend --endpoint: it ends in /v1 for most servers"
            raise InputInvalid("does not answer as OpenAI's chat API does", self.url, do=do)
        text: str = (choices[0].message.content or "").strip()
        fault = "cut_off" if choices[0].finish_reason == "length" else "" if text else "empty_reply"
        return Reply(text, fault, self._used(answer.usage))

    def _used(self, usage: Any) -> Usage:
        if usage is None:
            return Usage(calls=1, unmetered=1)
        read, wrote = usage.prompt_tokens or 0, usage.completion_tokens or 0
        cost = (read * self.prices.prompt + wrote * self.prices.completion) / 1000
        return Usage(1, read, wrote, cost_usd=cost)

    def _explained(self, error: Exception) -> FtaasError:
        """The error without its body, which may repeat what was sent."""
        import openai

        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            got = f"HTTP {error.status_code}"
            return InputInvalid("the endpoint does not accept the key", self.url, got, "mend --api-key")
        if isinstance(error, openai.NotFoundError):
            do = "mend --endpoint (it ends in /v1 for most servers) or --model"
            return InputInvalid("the endpoint has no such model or path", self.url, f"'{self.model}'", do)
        if isinstance(error, openai.RateLimitError):
            waits = error.response.headers.get("retry-after", "")
            got = _code(error) + (f", Retry-After {waits}" if waits else "")
            return FtaasError("the endpoint takes no more requests", self.url, got, f"wait, {_GO_ON}")
        if isinstance(error, openai.APIStatusError):
            return FtaasError("the endpoint fails", self.url, _code(error), f"see its log, {_GO_ON}")
        got = type(error.__cause__ or error).__name__
        return FtaasError("the endpoint cannot be reached", self.url, got, f"start it, {_GO_ON}")


def _unfit(kind: Any, value: str) -> bool:
    try:
        pydantic.TypeAdapter(kind).validate_python(value)
    except pydantic.ValidationError:
        return True
    return False


def _code(error: Any) -> str:
    """HTTP status, and the endpoint's code and parameter where they are names and no prose."""
    names = [name for name in (error.code, error.param) if isinstance(name, str) and name.isidentifier()]
    return " ".join([f"HTTP {error.status_code}", *names])
