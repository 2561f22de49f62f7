"""What a raw row says, one function a format: its messages, and what only some kinds have (`extra`)."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ftaas_pipelines.data.rows import checkable, label_studio, preference
from ftaas_pipelines.data.rows import messages as chat
from ftaas_pipelines.data.rows.cells import Cells, RowFault, is_blank, parsed, seen, text
from ftaas_pipelines.data.rows.formats import FORMATS, Layout
from ftaas_pipelines.data.rows.messages import Message

Said = tuple[list[Message], dict[str, Any]]
Meaning = Callable[[Cells], Said]  # raises RowFault

EXTRA: dict[str, type] = {"tools": list, "rejected": str, "label": bool, "expected": str, "columns": dict}


def of(layout: Layout) -> Meaning:
    """The function that reads the rows of a layout."""
    if layout.format in ("alpaca", "prompt_completion", "text_target"):
        return _pair(layout)
    return partial(_MEANINGS[layout.format], layout)


def _pair(layout: Layout) -> Meaning:
    """One question and one answer. The names are looked up once: most rows of most projects pass here."""
    question, answer = (layout.name(ours) for ours in FORMATS[layout.format].required)
    context = layout.name("input") if layout.format == "alpaca" else None

    def read(cells: Cells) -> Said:
        prompt = text(cells, question, "question")
        if context is not None and cells.get(context):
            prompt += "\n" + text(cells, context, "input")
        return [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": text(cells, answer, "answer")},
        ], {}

    return read


def _messages(layout: Layout, cells: Cells) -> Said:
    column = layout.name("messages")
    messages = chat.conversation(cells.get(column), column)
    chat.check_answered(messages)
    return messages, _own(cells.get(layout.name("extra"))) | _tools(layout, cells)


def _own(value: Any) -> dict[str, Any]:
    """The `extra` of a record that this platform wrote.

    A column of that name that holds other things is left out, as is every column that a format does not know.

    Raises:
        RowFault: a part of it is of another type than a record's.
    """
    extra: Any = parsed(value)
    if not isinstance(extra, dict) or not extra or not EXTRA.keys() >= extra.keys():
        return {}
    for name, given in extra.items():  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(given, EXTRA[name]):
            raise RowFault(f"'{name}' of extra is not a {EXTRA[name].__name__}", seen(given))
    return {**extra}


def _sharegpt(layout: Layout, cells: Cells) -> Said:
    column = layout.name("conversations")
    messages = chat.conversation(cells.get(column), column)
    messages = chat.with_system(messages, cells.get(layout.name("system")), layout.name("system"))
    chat.check_answered(messages)
    return messages, _tools(layout, cells)


def _tools(layout: Layout, cells: Cells) -> dict[str, Any]:
    value = cells.get(layout.name("tools"))
    tools = [] if is_blank(value) else chat.tools(value, layout.name("tools"))
    return {"tools": tools} if tools else {}


def _text(layout: Layout, cells: Cells) -> Said:
    return [{"role": "assistant", "content": text(cells, layout.name("text"), "text")}], {}


_MEANINGS: dict[str, Callable[[Layout, Cells], Said]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "preference": preference.pair,
    "kto": preference.labelled,
    "checkable": checkable.solved,
    "text": _text,
    "label_studio": label_studio.annotated,
}
