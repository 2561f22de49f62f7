"""One request on its way: what its steps come to know, and what is counted, logged and traced of it."""

import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request

from ftaas_pipelines.serving.access.caller import Caller
from ftaas_pipelines.serving.access.limits import Admission
from ftaas_pipelines.serving.guard import Guard, Noticed
from ftaas_pipelines.serving.openai_shapes import ChatRequest, CompletionRequest, RequestRefused
from ftaas_pipelines.serving.routing import Target
from ftaas_pipelines.serving.traces import Trace


@dataclass
class Passage:
    """One request on its way, and what is known of it so far."""

    http: Request
    kind: Literal["chat", "completion"]
    at: float = field(default_factory=time.time)
    started: float = field(default_factory=time.monotonic)
    id: str = ""
    caller: Caller | None = None
    asked: ChatRequest | CompletionRequest | None = None
    body: dict[str, Any] = field(default_factory=dict[str, Any])
    admission: Admission | None = None
    guard: Guard | None = None
    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    noticed: list[Noticed] = field(default_factory=list[Noticed])
    target: Target | None = None
    answer: str = ""
    finish: str = ""
    status: int = 200
    code: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queue_ms: float = 0.0
    first_token_s: float = 0.0
    generate_ms: float = 0.0  # from the engine's taking it in to the last token, as the engine says
    engine_s: float = 0.0
    total_s: float = 0.0
    cost_usd: float = 0.0
    shadow_of: str = ""
    trace: Trace | None = None

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.kind == "chat" else "cmpl-") + uuid.uuid4().hex

    @property
    def project(self) -> str:
        return self.asked.model if self.asked else ""

    @property
    def project_label(self) -> str:
        """For metrics: only projects that are known here, so that callers cannot grow the table."""
        return self.project if self.admission or self.shadow_of else "unknown"

    @property
    def release(self) -> str:
        return self.target.release.release if self.target else ""

    @property
    def variant(self) -> str:
        return self.target.variant if self.target else ""

    def refused(self, why: RequestRefused) -> None:
        self.status, self.code = why.status, why.code or "refused"
