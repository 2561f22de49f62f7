"""What the guard reads of requests and answers in OpenAI's shapes, and where what it redacted is put back.

It reads the texts of messages and of answers, the arguments of tools' calls, and all that tools say of
themselves. Log probabilities tell a text as well: they leave with it, and not at all where something in it
was redacted.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import orjson

from ftaas_pipelines.serving.guard import Guard, Noticed, OutputRefused
from ftaas_pipelines.serving.openai_shapes import ChatRequest, CompletionRequest

Kind = Literal["chat", "completion"]
Text = dict[str, Any]  # role, content
_BETWEEN = "\ue000"  # for private use, says Unicode: between the names and texts of tools


def texts_of(asked: ChatRequest | CompletionRequest, body: dict[str, Any]) -> list[Text]:
    """The texts of a prompt in order: each message's, behind it its calls' arguments; last those of tools."""
    if isinstance(asked, CompletionRequest):
        return asked.messages_of()
    found: list[Text] = []
    for message in asked.prompt():
        found.append({k: v for k, v in message.items() if k != "tool_calls"})
        for call in message.get("tool_calls", ()):
            found.append({"role": "call", "content": orjson.dumps(call["function"]["arguments"]).decode()})
    if body.get("tools"):
        strings: list[str] = []

        def noted(text: str) -> str:
            strings.append(text.replace(_BETWEEN, ""))
            return text

        _each(body["tools"], noted)
        found.append({"role": "tools", "content": _BETWEEN.join(strings)})
    return found


def _each(value: Any, new: Callable[[str], str]) -> Any:
    """JSON with each of its strings, names too, made new."""
    if isinstance(value, str):
        return new(value)
    if isinstance(value, list):
        return [_each(part, new) for part in cast(list[Any], value)]
    if isinstance(value, dict):
        return {new(key): _each(part, new) for key, part in cast(dict[str, Any], value).items()}
    return value


def put_back(kind: Kind, body: dict[str, Any], texts: Sequence[Text]) -> dict[str, Any]:
    """The keys of a request's body that hold the prompt, with these texts in it."""
    if kind == "completion":
        return {"prompt": texts[0]["content"]}
    left = iter(text["content"] for text in texts)
    messages: list[dict[str, Any]] = []
    for given in body["messages"]:
        message = {**given, "content": _content(given.get("content"), next(left))}
        if given.get("tool_calls"):
            message["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": next(left)}}
                for call in given["tool_calls"]
            ]
        messages.append(message)
    if not body.get("tools"):
        return {"messages": messages}
    strings = iter(next(left).split(_BETWEEN))
    return {"messages": messages, "tools": _each(body["tools"], lambda _: next(strings, ""))}


def _content(given: Any, text: str) -> Any:
    """A message's content with its text replaced; its images stay."""
    if given is None or isinstance(given, str):
        return text
    images = [part for part in given if part.get("type") == "image_url"]
    return [{"type": "text", "text": text}, *images]


def check_choice(guard: Guard, kind: Kind, choice: dict[str, Any]) -> list[Noticed]:
    """Redact a choice of a whole answer in place; a refused one becomes empty. Returns what was seen."""
    holder, name = (choice["message"], "content") if kind == "chat" else (choice, "text")
    noticed: list[Noticed] = []
    try:
        if holder[name] or not holder.get("tool_calls"):
            holder[name], noticed = guard.check_output(holder[name] or "")
        noticed += _check_calls(guard, holder.get("tool_calls") or ())
    except OutputRefused as why:
        holder[name], choice["finish_reason"] = "", "content_filter"
        holder.pop("tool_calls", None)
        noticed = why.noticed
    if any(n.action in ("redact", "refuse") for n in noticed):
        choice["logprobs"] = None
        choice.pop("token_ids", None)
    return noticed


def _check_calls(guard: Guard, calls: Sequence[dict[str, Any]]) -> list[Noticed]:
    seen: list[Noticed] = []
    for call in calls:
        call["function"]["arguments"], noticed = guard.check_output(call["function"]["arguments"])
        seen += noticed
    return seen


def said(kind: Kind, choice: dict[str, Any]) -> str:
    """The text of a choice of a whole answer, its calls behind it."""
    if kind == "completion":
        return choice["text"]
    calls = [orjson.dumps(c["function"]).decode() for c in choice["message"].get("tool_calls") or ()]
    return "\n".join(filter(None, [choice["message"]["content"], *calls]))


class GuardedChoice:
    """One choice of a streamed answer: of each chunk only what may leave does.

    Attributes:
        noticed: what was seen in what has left; complete behind the last chunk.
        text: what has left.
    """

    def __init__(self, guard: Guard, kind: Kind):
        self._guard, self._kind, self._stream = guard, kind, guard.stream()
        self._calls: list[Noticed] = []
        self._scores: list[dict[str, Any]] = []
        self._called = False
        self.text = ""

    @property
    def noticed(self) -> list[Noticed]:
        return [*self._stream.noticed, *self._calls]

    def check(self, choice: dict[str, Any]) -> None:
        """Hold back of a chunk what cannot be judged yet, and let go what can; in place.

        Raises:
            OutputRefused: a rule refuses what has come.
        """
        holder, name = (choice["delta"], "content") if self._kind == "chat" else (choice, "text")
        text = self._stream.feed(holder.get(name) or "")
        calls = holder.get("tool_calls") or ()
        self._calls += _check_calls(self._guard, calls)
        self._called |= bool(calls)
        if choice["finish_reason"] and not (self._called and self._stream.empty):
            text += self._stream.end()
        if text or name in holder:
            holder[name] = text
        self._tell(choice)
        self.text += text + "".join(orjson.dumps(call["function"]).decode() for call in calls)

    def _tell(self, choice: dict[str, Any]) -> None:
        """Log probabilities leave at once where nothing is ever held back, else with the last chunk."""
        if not self._stream.holds:
            return
        if scores := choice.pop("logprobs", None):
            self._scores.append(scores)
        choice["logprobs"] = None
        if choice["finish_reason"] and not any(n.action == "redact" for n in self.noticed):
            choice["logprobs"] = _joined(self._scores)


def _joined(scores: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Log probabilities of several chunks as of one."""
    if not scores:
        return None
    lists = {key for part in scores for key, value in part.items() if isinstance(value, list)}
    return {
        **scores[0],
        **{key: [one for part in scores for one in part[key]] for key in sorted(lists)},
    }
