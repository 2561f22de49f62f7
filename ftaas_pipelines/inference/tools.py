r"""How a base writes the calls of tools: asked of its own chat template, which taught it.

A template is rendered with one call in it. What stands around the call's JSON are its marks, and the keys in
it name the tool and its arguments: `<tool_call>\n{"name": …, "arguments": …}\n</tool_call>`, say. Templates
that write a call otherwise than as JSON, or show no tools, have no style: their models call no tools here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tool = dict[str, Any]  # {"type": "function", "function": {"name", "description", "parameters"}}
_NAME, _KEY, _VALUE = "ftaas_probe", "ftaas_key", "ftaas_value"
_ANYTHING: dict[str, Any] = {"type": "object"}
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Call:
    """A call of a tool; `arguments` is a JSON text, as OpenAI's API has it."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Style:
    """How calls are written.

    Attributes:
        opening, closing: what stands before and behind a call's JSON.
        name, arguments: its keys.
    """

    opening: str
    closing: str
    name: str
    arguments: str

    def schemas(self, tools: Sequence[Tool]) -> list[dict[str, Any]]:
        """JSON schemas of a call, one for each tool."""
        return [
            {
                "type": "object",
                "properties": {
                    self.name: {"const": tool["function"]["name"]},
                    self.arguments: tool["function"].get("parameters") or _ANYTHING,
                },
                "required": [self.name, self.arguments],
                "additionalProperties": False,
            }
            for tool in tools
        ]

    def begins(self, text: str) -> int:
        """From where on a text that still grows may be a call; its length: nowhere."""
        mark = self.opening.strip() or "{"
        if (found := text.find(mark)) >= 0:
            return found
        return next(
            (i for i in range(max(0, len(text) - len(mark)), len(text)) if mark.startswith(text[i:])),
            len(text),
        )

    def parse(self, text: str, tools: Sequence[Tool]) -> tuple[str, list[Call]]:
        """An answer's text without its calls, and the calls of known tools in it, in order."""
        before, calls, behind = self.split(text, tools)
        return "\n".join(part for part in (before, behind) if part), calls

    def split(self, text: str, tools: Sequence[Tool]) -> tuple[str, list[Call], str]:
        """The text before the first call, the calls, and what stands behind the last."""
        names = {tool["function"]["name"] for tool in tools}
        at = text.find("{")
        while at >= 0:
            before = text[:at].rstrip()
            if before.endswith(self.opening.strip()) and (found := self._call(text, at, names)):
                return self._all(text, before.removesuffix(self.opening.strip()).rstrip(), found, names)
            at = text.find("{", at + 1)
        return text, [], ""

    def _all(
        self, text: str, said: str, found: tuple[Call, int], names: set[str]
    ) -> tuple[str, list[Call], str]:
        calls: list[Call] = []
        rest = ""
        while True:
            call, end = found
            calls.append(call)
            rest = text[end:].lstrip().removeprefix(self.closing.strip()).lstrip(" \n,;]")
            rest = rest.removeprefix(self.opening.strip()).lstrip()
            if not rest.startswith("{") or not (after := self._call(rest, 0, names)):
                return said, calls, rest
            text, found = rest, after

    def _call(self, text: str, at: int, names: set[str]) -> tuple[Call, int] | None:
        """The call at a place, and where it ends."""
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        name, arguments = value.get(self.name), value.get(self.arguments)
        if not (isinstance(name, str) and name in names and isinstance(arguments, dict)):
            return None
        return Call(name, json.dumps(arguments, ensure_ascii=False)), end


class Calls:
    """The text of a streamed answer without its calls, as it comes."""

    def __init__(self, style: Style, tools: Sequence[Tool]):
        self._style, self._tools = style, tools
        self._text, self._gone = "", 0

    def feed(self, text: str) -> str:
        """What is no call for certain, of all that has come."""
        self._text += text
        start, self._gone = self._gone, max(self._gone, self._style.begins(self._text))
        return self._text[start : self._gone]

    def end(self) -> tuple[str, list[Call]]:
        """The rest of the text, and the calls."""
        before, calls, behind = self._style.split(self._text, self._tools)
        rest = before[self._gone :]
        return (f"{rest}\n{behind}" if behind else rest), calls


def style_of(tokenizer: "PreTrainedTokenizerBase") -> Style | None:
    """How the bases of a tokenizer write calls; None: not in a way that is known here."""
    asked = [{"role": "user", "content": "?"}]
    call = {"id": "call00001", "type": "function", "function": {"name": _NAME, "arguments": {_KEY: _VALUE}}}
    tool: Tool = {
        "type": "function",
        "function": {"name": _NAME, "description": "", "parameters": {"type": "object", "properties": {}}},
    }
    try:
        before = _rendered(tokenizer, asked, [tool], ask=True)
        whole = _rendered(
            tokenizer, [*asked, {"role": "assistant", "content": "", "tool_calls": [call]}], [tool]
        )
    except Exception:  # a template raises what it likes
        return None
    if _NAME not in before or not whole.startswith(before):
        return None
    text = whole.removeprefix(before)
    for end in tokenizer.all_special_tokens:
        text = text.partition(str(end))[0]
    at = text.find("{")
    try:
        value, end = _DECODER.raw_decode(text, max(at, 0))
    except ValueError:
        return None
    keys = {
        (_VALUE if v == {_KEY: _VALUE} else v): k for k, v in value.items() if v in (_NAME, {_KEY: _VALUE})
    }
    if keys.keys() != {_NAME, _VALUE}:
        return None
    return Style(text[:at], text[end:].rstrip(), keys[_NAME], keys[_VALUE])


def _rendered(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Any], tools: Sequence[Tool], ask: bool = False
) -> str:
    return str(
        tokenizer.apply_chat_template(
            list(messages), tools=list(tools), tokenize=False, add_generation_prompt=ask
        )
    )
