"""The one way through for every request, a function each, in this order.

    authenticate -> read -> admit -> check_input -> route -> generate -> check_output -> meter -> record

Whatever a step refuses leaves as an error in OpenAI's shape with a code of its own, is counted, and is
recorded. `docs/serving.md` follows one request through this page.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import aiohttp
import orjson
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ftaas_pipelines.serving import guarded, incoming, logs, upstream
from ftaas_pipelines.serving.access import Access
from ftaas_pipelines.serving.access.limits import Limits
from ftaas_pipelines.serving.desired import Terms
from ftaas_pipelines.serving.guard import Guard, InputRefused, OutputRefused
from ftaas_pipelines.serving.guarded import GuardedChoice
from ftaas_pipelines.serving.inference_log import Answered, InferenceLog
from ftaas_pipelines.serving.meter import Meter
from ftaas_pipelines.serving.openai_shapes import ChatRequest, CompletionRequest, RequestRefused, invalid
from ftaas_pipelines.serving.passage import Passage
from ftaas_pipelines.serving.routing import Routes, Target
from ftaas_pipelines.serving.traces import Traces, step
from ftaas_pipelines.serving.upstream import Reply

MOST_MESSAGES = 2048
MOST_SHADOWS = 8  # at once; more are left out rather than take the place of what somebody waits for
_log = logging.getLogger("ftaas.request")
_SHAPES = {"chat": ChatRequest, "completion": CompletionRequest}
_PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}


@dataclass
class Endpoint:
    """What requests need on their way through one environment."""

    environment: str
    access: Access
    limits: Limits
    routes: Routes
    session: aiohttp.ClientSession
    meter: Meter
    log: InferenceLog
    guards: Callable[[str], Guard]
    terms: Callable[[str], Terms]
    traces: Traces | None = None
    shadows: set["asyncio.Task[None]"] = field(default_factory=set["asyncio.Task[None]"])


async def answer(endpoint: Endpoint, http: Request, kind: Literal["chat", "completion"]) -> ASGIApp:
    """Answer one request, whole or as a stream. What is returned sends it, and ends the request."""
    passage = Passage(http, kind)
    if endpoint.traces:
        passage.trace = endpoint.traces.begin(passage)
    endpoint.meter.in_flight.inc()
    try:
        authenticate(endpoint, passage)
        await read(passage)
        await admit(endpoint, passage)
        check_input(endpoint, passage)
        route(endpoint, passage)
        async with incoming.while_there(passage.http):
            reply = await generate(endpoint, passage)
            assert passage.asked is not None
            whole = {} if passage.asked.stream else await _whole(passage, reply)
        if passage.asked.stream:
            return _streamed(endpoint, passage, reply)
        body = check_output(passage, whole)
        response = Response(orjson.dumps(body), 200, _headers(passage), "application/json")
    except RequestRefused as why:
        passage.refused(why)
        response = JSONResponse(why.body, why.status, _headers(passage) | why.headers)
    except asyncio.CancelledError:
        passage.status, passage.code = 499, "caller_left"
        await end(endpoint, passage)
        raise
    except Exception as failure:
        why = _failed(passage, failure)
        response = JSONResponse(why.body, 500, _headers(passage))
    await settle(passage)
    return _Leaving(response, partial(account, endpoint, passage))


class _Leaving:
    """A response on its way out, and what is done behind its last byte, also where there was no first.

    That is a task of its own: what was written leaves before it begins.
    """

    def __init__(self, response: Response, behind: Callable[[], Coroutine[Any, Any, None]]):
        self._response, self._behind = response, behind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._response(scope, receive, send)
        finally:
            await asyncio.shield(self._behind())


def _failed(passage: Passage, failure: Exception) -> RequestRefused:
    """What the caller gets to know of a failure of ours; the log has the rest."""
    _log.error("request %s", passage.id, exc_info=failure)
    why = RequestRefused(500, f"{type(failure).__name__}; see the log for {passage.id}", "internal")
    passage.refused(why)
    return why


@step
def authenticate(endpoint: Endpoint, passage: Passage) -> None:
    """Who asks: by API key, by token, or (locally, where that is allowed) nobody in particular.

    Raises:
        RequestRefused: 401.
    """
    passage.caller = endpoint.access.authenticate(passage.http.headers.get("authorization"))


@step
async def read(passage: Passage) -> None:
    """The body: of bounded size, in bounded time, in OpenAI's shape.

    Raises:
        RequestRefused: 400, 408 or 413.
    """
    raw = await incoming.body_of(passage.http)
    try:
        passage.body = orjson.loads(raw)
    except ValueError as error:
        raise RequestRefused(400, f"The body is not JSON: {error}", "invalid_json") from None
    try:
        # Of what was read, not of the raw bytes again: where a key stands twice, one reader must decide.
        passage.asked = _SHAPES[passage.kind].model_validate_json(orjson.dumps(passage.body))
    except ValidationError as error:
        raise invalid(error.errors(include_url=False)) from None
    except TypeError as error:  # orjson reads more levels than it writes
        raise RequestRefused(400, f"The body is nested too deeply: {error}", "invalid_json") from None


@step
async def admit(endpoint: Endpoint, passage: Passage) -> None:
    """Whether this caller may ask this project, and has not asked too much.

    Raises:
        RequestRefused: 403; 404, no such project; 429; 503, the limits cannot be counted.
    """
    caller, asked = passage.caller, passage.asked
    assert caller is not None and asked is not None
    caller.require("answer", asked.model)
    endpoint.routes.require_known(asked.model)
    most = endpoint.routes.max_new_tokens(asked.model)
    wanted = min(asked.max_completion_tokens or asked.max_tokens or most, most)
    passage.messages = guarded.texts_of(asked, passage.body)
    if len(passage.messages) > MOST_MESSAGES:
        raise RequestRefused(400, f"More than {MOST_MESSAGES} messages", "invalid_value", "messages")
    characters = sum(len(m["content"]) for m in passage.messages)
    passage.admission = await endpoint.limits.admit(caller, characters // 4 + wanted * asked.n)


@step
def check_input(endpoint: Endpoint, passage: Passage) -> None:
    """What the project's guard says of the prompt: refuse it, or redact it and go on.

    Raises:
        RequestRefused: 400, `guard_input`.
    """
    passage.guard = endpoint.guards(passage.project)
    try:
        passage.messages, passage.noticed = passage.guard.check_input(passage.messages)
    except InputRefused as why:
        passage.noticed = why.noticed
        raise


@step
def route(endpoint: Endpoint, passage: Passage) -> None:
    """Which release answers, and where it lies.

    Raises:
        RequestRefused: 503, nothing can answer for this project now.
    """
    assert passage.caller is not None and passage.asked is not None
    passage.target = endpoint.routes.choose(passage.project, passage.asked.user or passage.caller.id)


@step
async def generate(endpoint: Endpoint, passage: Passage) -> Reply:
    """Ask the engine. Returns once it begins to answer.

    Raises:
        RequestRefused: what the engine refused; 503, it went away.
    """
    target = passage.target
    assert target is not None
    if target.shadow and len(endpoint.shadows) < MOST_SHADOWS:
        task = asyncio.create_task(_shadow(endpoint, passage, target.shadow))
        endpoint.shadows.add(task)
        task.add_done_callback(endpoint.shadows.discard)
    begun = time.monotonic()
    reply = await _asked(endpoint, passage, target)
    passage.engine_s = time.monotonic() - begun
    return reply


def _asked(endpoint: Endpoint, passage: Passage, target: Target) -> Coroutine[Any, Any, Reply]:
    """The request as the engine gets it, sent."""
    body = target.engine.asked(target.release, passage.body)
    if any(n.action == "redact" for n in passage.noticed):
        body |= guarded.put_back(passage.kind, passage.body, passage.messages)
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True}  # counted also where the caller does not ask
    ours = target.engine.ours  # spans of this house are nobody else's
    headers = passage.trace.headers if passage.trace and ours else {}
    return upstream.ask(endpoint.session, target.engine, _PATHS[passage.kind], body, headers, target.begun())


async def _shadow(endpoint: Endpoint, passage: Passage, target: Target) -> None:
    """Have another release answer the same, whole, and record what it said: nobody gets it."""
    other = Passage(passage.http, passage.kind)
    other.shadow_of, other.target = passage.id, target
    other.caller, other.asked = passage.caller, passage.asked
    other.body = {k: v for k, v in passage.body.items() if k not in ("stream", "stream_options")}
    other.guard, other.messages = passage.guard, passage.messages
    other.noticed = list(passage.noticed)
    other.trace = passage.trace and passage.trace.beside("shadow")
    endpoint.meter.in_flight.inc()
    try:
        reply = await _asked(endpoint, other, target)
        try:
            check_output(other, await reply.whole())
        finally:
            await reply.close()
    except RequestRefused as why:
        other.refused(why)
    await end(endpoint, other)


async def _whole(passage: Passage, reply: Reply) -> dict[str, Any]:
    begun = time.monotonic()
    try:
        return await reply.whole()
    finally:
        passage.engine_s += time.monotonic() - begun
        await reply.close()


@step
def check_output(passage: Passage, body: dict[str, Any]) -> dict[str, Any]:
    """What the guard says of a whole answer: let it go, redact it, or hold it back.

    What is held back goes as an empty choice that ends with `content_filter`, as OpenAI does it.
    """
    assert passage.guard is not None
    for choice in body["choices"]:
        passage.noticed += guarded.check_choice(passage.guard, passage.kind, choice)
        passage.finish = choice["finish_reason"]
        passage.answer += guarded.said(passage.kind, choice)
    _note(passage, body)
    body.pop("timing", None)
    assert passage.target is not None
    return {**passage.target.facts, **body, **_named(passage)}


def _named(passage: Passage) -> dict[str, str]:
    return {"id": passage.id, "model": passage.project}


def _note(passage: Passage, body: dict[str, Any]) -> None:
    """What the engine says of tokens and time."""
    usage, timing = body.get("usage") or {}, body.get("timing") or {}
    passage.prompt_tokens = int(usage.get("prompt_tokens", 0))
    passage.completion_tokens = int(usage.get("completion_tokens", 0))
    passage.queue_ms = float(timing.get("queue_ms", 0.0))
    if timing:  # another server says nothing of it: then it is what is seen from here
        passage.first_token_s = float(timing["first_token_ms"]) / 1000
    passage.generate_ms = float(timing.get("total_ms", passage.engine_s * 1000))


def _streamed(endpoint: Endpoint, passage: Passage, reply: Reply) -> _Leaving:
    pieces = _stream(passage, reply)

    async def behind() -> None:
        await pieces.aclose()
        await reply.close()
        await end(endpoint, passage)

    response = StreamingResponse(pieces, 200, _headers(passage), "text/event-stream")
    passage.status, passage.code = 499, "caller_left"  # until its last piece leaves
    return _Leaving(response, behind)


async def _stream(passage: Passage, reply: Reply) -> AsyncGenerator[bytes]:
    """The pieces as they may leave: what the guard would redact or refuse never does."""
    assert passage.guard is not None and passage.asked is not None and passage.target is not None
    choices = [GuardedChoice(passage.guard, passage.kind) for _ in range(passage.asked.n)]
    if passage.trace:
        passage.trace.go_on("check_output")
    begun = time.monotonic()
    try:
        async for said in reply.events():
            chunk: dict[str, Any] = {**passage.target.facts, **said, **_named(passage)}
            if not chunk["choices"]:
                _note(passage, chunk)
                chunk.pop("timing", None)
                if not passage.asked.stream_options.include_usage:
                    continue
            for choice in chunk["choices"]:
                passage.first_token_s = passage.first_token_s or time.monotonic() - passage.started
                choices[choice["index"]].check(choice)
                passage.finish = choice["finish_reason"] or passage.finish
            yield b"data: " + orjson.dumps(chunk) + b"\n\n"
        passage.status, passage.code = 200, ""
        yield b"data: [DONE]\n\n"
    except OutputRefused as why:
        passage.finish = "content_filter"
        passage.noticed += why.noticed
        passage.status, passage.code = 200, ""
        yield b"data: " + orjson.dumps(_filtered(passage)) + b"\n\ndata: [DONE]\n\n"
    except RequestRefused as why:
        passage.refused(why)
        yield b"data: " + orjson.dumps(why.body) + b"\n\n"
    except Exception as failure:
        yield b"data: " + orjson.dumps(_failed(passage, failure).body) + b"\n\n"
    finally:
        passage.engine_s += time.monotonic() - begun
        for checked in choices:
            passage.noticed += checked.noticed
            passage.answer += checked.text


def _filtered(passage: Passage) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": "content_filter", "logprobs": None}
    choice |= {"delta": {}} if passage.kind == "chat" else {"text": ""}
    kind = "chat.completion.chunk" if passage.kind == "chat" else "text_completion"
    return {
        "id": passage.id,
        "object": kind,
        "created": int(passage.at),
        "model": passage.project,
        "choices": [choice],
    }


async def end(endpoint: Endpoint, passage: Passage) -> None:
    """Settle and account for a request that is over: for answers and refusals alike."""
    await settle(passage)
    await account(endpoint, passage)


async def settle(passage: Passage) -> None:
    """What it took of the limits; of a whole answer before it leaves, for its caller may ask on at once."""
    if passage.admission:
        await passage.admission.settle(passage.prompt_tokens + passage.completion_tokens)
        passage.admission.release()


async def account(endpoint: Endpoint, passage: Passage) -> None:
    """Count and record."""
    passage.total_s = time.monotonic() - passage.started
    endpoint.meter.in_flight.dec()
    terms = endpoint.terms(passage.project)
    tokens = passage.prompt_tokens + passage.completion_tokens
    passage.cost_usd = tokens / 1000 * terms.answers.usd_per_1k_tokens
    meter(endpoint, passage)
    record(endpoint, passage, terms)
    logs.ended(passage)
    if passage.trace:
        passage.trace.ended(passage)


def meter(endpoint: Endpoint, passage: Passage) -> None:
    """Count the request for `/metrics`."""
    endpoint.meter.ended(passage)


def record(endpoint: Endpoint, passage: Passage, terms: Terms) -> None:
    """Put the request into the inference log; never waits. Texts, redacted, where the policy keeps them."""
    target, texts = passage.target, terms.answers.texts == "redacted" and passage.status == 200
    row = Answered(
        id=passage.id,
        at=passage.at,
        environment=endpoint.environment,
        project=passage.project if passage.admission or passage.shadow_of else "",
        release=passage.release,
        adapter_digest=target.release.adapter if target else "",
        base=target.release.base if target else "",
        variant=passage.variant,
        caller=passage.caller.id if passage.caller else "",
        kind=passage.kind,
        status=passage.status,
        error=passage.code,
        finish_reason=passage.finish,
        prompt_tokens=passage.prompt_tokens,
        completion_tokens=passage.completion_tokens,
        cost_usd=passage.cost_usd,
        total_ms=passage.total_s * 1000,
        queue_ms=passage.queue_ms,
        first_token_ms=passage.first_token_s * 1000,
        guard=[asdict(n) for n in passage.noticed],
        shadow_of=passage.shadow_of,
        unit=target.unit if target else "",
        prompt=orjson.dumps(passage.messages).decode() if texts else None,
        answer=passage.answer if texts else None,
    )
    endpoint.log.put(row)


def _headers(passage: Passage) -> dict[str, str]:
    """Our id, what is left of the limits, and where the time went (`Server-Timing`, ms)."""
    headers = {"x-request-id": passage.id, **(passage.admission.headers if passage.admission else {})}
    if passage.generate_ms:
        timing = f"queue;dur={passage.queue_ms:.1f}, generate;dur={passage.generate_ms:.1f}"
        headers["server-timing"] = timing
    return headers
