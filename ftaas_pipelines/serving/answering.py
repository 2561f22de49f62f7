"""One request inside the engine, from its release to its last byte."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.serving.engine import Engine
from ftaas_pipelines.serving.openai_answers import Shape, TextOf
from ftaas_pipelines.serving.openai_shapes import ChatRequest, CompletionRequest, RequestRefused
from ftaas_pipelines.serving.runtime import ServedRelease

if TYPE_CHECKING:
    from ftaas_pipelines.inference.batch import Generation
    from ftaas_pipelines.inference.grammar import Grammar
    from ftaas_pipelines.inference.scheduler import Ticket
    from ftaas_pipelines.inference.tools import Calls, Style

# What is wrong with a request, by the place that an error names.
_CODES = {"tools": "invalid_tools", "response_format": "invalid_schema"}


@dataclass(frozen=True)
class Piece:
    """Some more text of an answer, and how many tokens it has by now."""

    text: str
    tokens: int


@dataclass
class _Choice:
    """One answer of a stream, and how much of it has left."""

    ticket: "Ticket"
    calls: "Calls | None" = None
    tokens: int = 0
    characters: int = 0


@dataclass
class Answering:
    """One request from its release to its last byte.

    Args:
        answered: called with each answer that is whole.
        refused: called with the status where a stream breaks off.
    """

    engine: Engine
    request: ChatRequest | CompletionRequest
    answered: "Callable[[ServedRelease, Ticket, Generation], None]"
    refused: Callable[[int, ServedRelease], None]

    def __post_init__(self) -> None:
        self.release = self.engine.release(self.request.model)
        chat = isinstance(self.request, ChatRequest)
        self.shape = Shape(chat, self.request.model, self.release.adapter, self.release.release)
        self.tools = self.request.offered if isinstance(self.request, ChatRequest) else []
        self.tickets: list[Ticket] = []
        self._style: Style | None = None
        self._pieces: asyncio.Queue[tuple[int, Piece | None]] = asyncio.Queue()
        self._first: list[tuple[int, Piece | None]] = []

    async def begin(self) -> None:
        """Hand the prompt in, once for each answer asked for.

        Raises:
            RequestRefused: the release cannot take it.
        """
        from ftaas_pipelines.inference.batch import Sampling

        request = self.request
        prompt = request.prompt() if isinstance(request, ChatRequest) else request.messages_of()
        grammar = await self._held_to()
        # torch wants a seed below 2**63; without one every sampled answer is a fresh draw.
        seed = secrets.randbits(62) if request.seed is None else request.seed
        wanted = request.max_completion_tokens or request.max_tokens or self.release.max_new_tokens
        loop = asyncio.get_running_loop()

        def tell(index: int, piece: Piece | None) -> None:  # in the scheduler's thread
            loop.call_soon_threadsafe(self._pieces.put_nowait, (index, piece))

        for i in range(request.n):
            sampling = Sampling(
                request.temperature, request.top_p, seed + i, tuple(request.stops), request.scores
            )
            ticket = await self.engine.submit(
                self.release,
                prompt,
                wanted,
                sampling,
                (lambda text, tokens, i=i: tell(i, Piece(text, tokens))) if request.stream else None,
                grammar.copy() if grammar else None,
                self.tools,
            )
            ticket.result.add_done_callback(lambda _, i=i: tell(i, None))
            self.tickets.append(ticket)

    async def _held_to(self) -> "Grammar | None":
        """What the answer must look like; None: as it comes.

        Raises:
            RequestRefused: this release cannot be held to it, or calls no tools.
        """
        request = self.request
        if not isinstance(request, ChatRequest):
            return None
        schema = request.response_format.fits if request.response_format else None
        if not self.tools and schema is None:
            return None
        network = await self.engine.network(self.release)
        if self.tools:
            self._style = network.calls
            if self._style is None:
                said = f"'{request.model}' calls no tools: its chat template shows none"
                raise RequestRefused(400, said, "tools_not_supported", "tools")
        if schema is None and not request.must_call:
            return None
        if self.engine.answers_with_labels(self.release):
            said = f"'{request.model}' answers with labels alone"
            raise RequestRefused(400, said, "invalid_schema", "response_format")
        grammars, style = network.grammars, self._style
        try:
            if schema is not None:
                return await asyncio.to_thread(grammars.json, schema, "response_format")
            assert style is not None
            schemas = style.schemas(self.tools)
            return await asyncio.to_thread(grammars.call, style.opening, style.closing, schemas, "tools")
        except InputInvalid as wrong:
            raise self._refusal(wrong) from wrong

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
        style, tools = self._style, self.tools
        calls_of = (lambda text: style.parse(text, tools)) if style else None
        body = self.shape.whole(answers, self.request, _text_of(self.tickets[0]), calls_of)
        return {**body, **self._timing()}

    def _done(self, ticket: "Ticket") -> "Generation":
        answer = self._fits(ticket)
        if wrong := getattr(ticket.constraint, "error", ""):
            raise RequestRefused(
                400, f"The schema cannot be followed to its end: {wrong}", "invalid_schema", "response_format"
            )
        self.answered(self.release, ticket, answer)
        return answer

    @staticmethod
    def _fits(ticket: "Ticket") -> "Generation":
        # By the row's own network: the adapter may have left memory since.
        answer, limit = ticket.result.result(), ticket.row and ticket.row.network.context_tokens
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
            where = failure.problems[0].where
            return RequestRefused(
                400,
                str(failure),
                _CODES.get(where, "invalid_image"),
                where if where in _CODES else "messages",
            )
        return failure

    async def started(self) -> None:
        """Wait for the first piece of text: what is wrong with the request shows before a stream begins.

        Raises:
            RequestRefused: the prompt is too long, or cannot be read.
        """
        i, piece = await self._pieces.get()
        if piece is None:
            try:
                self._fits(self.tickets[i])
            except BaseException as failure:
                self.cancel()
                raise self._refusal(failure) from failure
        self._first = [(i, piece)]

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events: a chunk for each piece of text, the finish reasons, `[DONE]`."""
        from ftaas_pipelines.inference.tools import Calls

        choices = [_Choice(t, Calls(self._style, self.tools) if self._style else None) for t in self.tickets]
        left = len(choices)
        completion_tokens = 0
        try:
            for i in range(left):
                yield _event(self.shape.chunk(i, "", first=True))
            while left:
                i, piece = self._first.pop() if self._first else await self._pieces.get()
                if piece:
                    if chunk := self._more(i, choices[i], piece):
                        yield _event(chunk)
                    continue
                left -= 1
                answer = self._done(self.tickets[i])
                completion_tokens += len(answer.token_ids)
                for chunk in self._last(i, choices[i], answer):
                    yield _event(chunk)
                if not left and self.request.stream_options.include_usage:
                    usage = self.shape.usage_chunk(answer, completion_tokens)
                    yield _event({**usage, **self._timing()})
            yield b"data: [DONE]\n\n"
        except Exception as failure:
            refusal = self._refusal(failure)
            if not isinstance(refusal, RequestRefused):
                refusal = RequestRefused(500, f"{type(failure).__name__}: {failure}")
            self.refused(refusal.status, self.release)
            yield _event(refusal.body)
        finally:  # also when the caller hung up
            self.cancel()

    def _more(self, i: int, choice: _Choice, piece: Piece) -> dict[str, Any] | None:
        """The chunk of a piece; None: it may be the beginning of a call."""
        text = choice.calls.feed(piece.text) if choice.calls else piece.text
        if not text:
            return None
        chunk = self.shape.chunk(i, text, scores=self._scores(choice, piece.tokens))
        choice.characters += len(text)
        return chunk

    def _last(self, i: int, choice: _Choice, answer: "Generation") -> list[dict[str, Any]]:
        """What was held back, the calls, and why it ended."""
        text, calls = choice.calls.end() if choice.calls else ("", [])
        scores = self._scores(choice, len(answer.token_ids))
        chunks: list[dict[str, Any]] = []
        if text or calls:
            chunks.append(self.shape.chunk(i, text or None, calls=calls))
        finish = "tool_calls" if calls else answer.finish_reason
        return [*chunks, self.shape.chunk(i, None, finish, scores)]

    def _scores(self, choice: _Choice, tokens: int) -> dict[str, Any] | None:
        """Log probabilities of the tokens that no chunk has told yet."""
        row = choice.ticket.row
        if self.request.scores is None or row is None or tokens <= choice.tokens:
            return None
        found = row.scores[choice.tokens : tokens]
        choice.tokens = tokens
        return self.shape.scores(found, _text_of(choice.ticket), choice.characters)


def _text_of(ticket: "Ticket") -> TextOf:
    """What tokens of a request's model read as."""
    assert ticket.row is not None
    tokenizer = ticket.row.network.tokenizer
    return lambda ids: str(tokenizer.decode(ids))


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + to_json(body, inf_nan_mode="null") + b"\n\n"
