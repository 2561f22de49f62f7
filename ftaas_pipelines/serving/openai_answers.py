"""OpenAI's answers, whole and in chunks."""

import time
import uuid
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.serving.openai_shapes import Request

if TYPE_CHECKING:
    from ftaas_pipelines.inference.batch import Generation, TokenScore
    from ftaas_pipelines.inference.tools import Call

TextOf = Callable[[list[int]], str]
CallsOf = Callable[[str], "tuple[str, list[Call]]"]


class Shape:
    """Builds the bodies of one answer: chat or text, whole or in chunks."""

    def __init__(self, chat: bool, model: str, adapter_digest: str, release: str):
        self.chat = chat
        self.id = ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex
        self._common = {"id": self.id, "created": int(time.time()), "model": model}
        self._ours = {"adapter_digest": adapter_digest, "release": release}

    def whole(
        self,
        answers: "Sequence[Generation]",
        request: Request,
        text_of: TextOf,
        calls_of: CallsOf | None = None,
    ) -> dict[str, Any]:
        """The body of all answers to a request, a choice each.

        Args:
            calls_of: what of a text is said, and which tools are called; None: none are.
        """
        choices: list[dict[str, Any]] = []
        for index, answer in enumerate(answers):
            finish: str = answer.finish_reason
            scores = None if answer.scores is None else self.scores(answer.scores, text_of)
            choice: dict[str, Any] = {"index": index, "finish_reason": finish, "logprobs": scores}
            if self.chat:
                said, calls = calls_of(answer.text) if calls_of else (answer.text, [])
                message: dict[str, Any] = {"role": "assistant", "content": said, "refusal": None}
                if calls:
                    message |= {"content": said or None, "tool_calls": [called(call) for call in calls]}
                    choice["finish_reason"] = "tool_calls"
                choice["message"] = message
            else:
                choice["text"] = answer.text
            if request.return_token_ids:
                choice["token_ids"] = answer.token_ids
            choices.append(choice)
        usage = usage_of(answers[0], sum(len(a.token_ids) for a in answers))
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._common, "object": kind, "choices": choices, "usage": usage, **self._ours}

    def scores(self, found: "Sequence[TokenScore]", text_of: TextOf, before: int = 0) -> dict[str, Any]:
        """Log probabilities (nats) of tokens in OpenAI's shape.

        Args:
            before: characters of the answer before the first of them.
        """
        if self.chat:
            return {
                "content": [
                    {
                        **_scored(text_of([s.token]), s.logprob),
                        "top_logprobs": [_scored(text_of([token]), value) for token, value in s.top],
                    }
                    for s in found
                ],
                "refusal": None,
            }
        tokens = [text_of([s.token]) for s in found]
        return {
            "tokens": tokens,
            "token_logprobs": [s.logprob for s in found],
            "top_logprobs": [{text_of([t]): v for t, v in s.top} for s in found],
            "text_offset": [before + n for n in accumulate((len(t) for t in tokens[:-1]), initial=0)]
            if tokens
            else [],
        }

    def chunk(
        self,
        index: int,
        text: str | None,
        finish: str | None = None,
        scores: dict[str, Any] | None = None,
        first: bool = False,
        calls: "Sequence[Call]" = (),
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": finish, "logprobs": scores}
        if self.chat:
            delta: dict[str, Any] = {"role": "assistant"} if first else {}
            if text is not None:
                delta["content"] = text
            if calls:
                delta["tool_calls"] = [{"index": i, **called(call)} for i, call in enumerate(calls)]
            choice["delta"] = delta
        else:
            choice["text"] = text or ""
        return {**self._chunk(), "choices": [choice]}

    def usage_chunk(self, answer: "Generation", completion_tokens: int) -> dict[str, Any]:
        return {**self._chunk(), "choices": [], "usage": usage_of(answer, completion_tokens)}

    def _chunk(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._common, "object": kind, **self._ours}


def called(call: "Call") -> dict[str, Any]:
    """A call of a tool, with a name of its own."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _scored(token: str, value: float) -> dict[str, Any]:
    # A token may be part of a character: its bytes are what the text of it alone shows.
    return {"token": token, "logprob": value, "bytes": list(token.encode())}


def usage_of(answer: "Generation", completion_tokens: int) -> dict[str, Any]:
    """What a request used; the prompt is that of any of its answers."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": answer.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.reused},
    }
