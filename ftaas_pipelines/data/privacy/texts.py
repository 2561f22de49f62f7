"""Every text of a record, and where it stands."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from ftaas_pipelines.data.rows.records import Record

_EXTRA_TEXTS = ("rejected", "expected", "tools")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|[nrtbf\"])")


class Place(NamedTuple):
    """Where a text stands in a record: `holder[key]`."""

    field: str
    holder: Any
    key: Any

    @property
    def text(self) -> str:
        return self.holder[self.key]


def readable(text: str) -> str:
    r"""The text, of the same length, with JSON's escapes as what they stand for.

    Else the `n` of an escaped line break would count as the first letter of the address behind it.
    """
    return _ESCAPE.sub(_meant, text) if "\\" in text else text


def _meant(escape: re.Match[str]) -> str:
    code, written = escape.group(1), escape.group()
    meant = '"' if written[-1] == '"' else "_" if code and chr(int(code, 16)).isalnum() else "\n"
    return meant * len(written)


def places_of(record: Record) -> list[Place]:
    """Every text of a record, always in the same order."""
    messages = record.messages
    last = len(messages) - 1
    first = 1 if last and messages[0]["role"] == "system" else 0
    places: list[Place] = []
    for i, message in enumerate(messages):
        if i == last:
            field = "answer"
        elif i < first:
            field = "system"
        else:
            field = "prompt" if last - first == 1 else f"message_{i + 1}"
        places.append(Place(field, message, "content"))
        if "tool_calls" in message:
            places += _strings(f"message_{i + 1}.tool_calls", message, "tool_calls")
    extra = record.extra
    if extra:
        for name in _EXTRA_TEXTS:
            if name in extra:
                places += _strings(name, extra, name)
        for column in extra.get("columns", ()):
            places += _strings(f"column.{column}", extra["columns"], column)
    return places


def _strings(field: str, holder: Any, key: Any) -> Iterator[Place]:
    """The strings in a value made of lists and objects."""
    value = holder[key]
    if isinstance(value, str):
        yield Place(field, holder, key)
    elif isinstance(value, dict):
        for name in cast(dict[str, Any], value):
            yield from _strings(field, cast(Any, value), name)
    elif isinstance(value, list):
        for i in range(len(cast(list[Any], value))):
            yield from _strings(field, cast(Any, value), i)
