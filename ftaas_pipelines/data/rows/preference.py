"""Judged answers: preference pairs (DPO) in three common shapes, and single answers with a label (KTO).

prompt text,            chosen and rejected text
prompt as turns or none, chosen and rejected as turns (without a prompt: their common beginning)
conversations,          chosen and rejected as one ShareGPT turn each
"""

from typing import Any

from ftaas_pipelines.data.rows import messages as chat
from ftaas_pipelines.data.rows.cells import Cells, RowFault, flag, is_blank, text
from ftaas_pipelines.data.rows.formats import Layout
from ftaas_pipelines.data.rows.messages import Message


def pair(layout: Layout, cells: Cells) -> tuple[list[Message], dict[str, Any]]:
    """Messages that end with the chosen answer, and the other as `rejected`.

    Raises:
        RowFault: one side is missing, both are equal, or they differ before the last answer.
    """
    chosen_column, rejected_column = layout.name("chosen"), layout.name("rejected")
    chosen, rejected = _answer(cells, chosen_column), _answer(cells, rejected_column)
    other = rejected[-1]
    if chosen[:-1] != rejected[:-1]:
        do = "let them begin alike and end with one answer each"
        raise RowFault(f"'{chosen_column}' and '{rejected_column}' differ before the last answer", do=do)
    if other.get("tool_calls") or is_blank(other["content"]):
        raise RowFault(
            f"'{rejected_column}' is not text",
            "a tool call or an image",
            "write it as text or delete the row",
        )
    if not chosen[-1].get("tool_calls") and chosen[-1]["content"].strip() == other["content"].strip():
        do = "delete the row, or mend the side that is wrong"
        raise RowFault(f"'{chosen_column}' and '{rejected_column}' are the same", do=do)
    return _asked(layout, cells, chosen), {"rejected": other["content"]} | _tools(layout, cells)


def labelled(layout: Layout, cells: Cells) -> tuple[list[Message], dict[str, Any]]:
    """Messages that end with an answer, and whether it is a good one as `label`.

    Raises:
        RowFault: answer, prompt or label is missing or of another kind.
    """
    label = flag(cells, layout.name("label"))
    messages = _asked(layout, cells, _answer(cells, layout.name("completion")))
    return messages, {"label": label} | _tools(layout, cells)


def _answer(cells: Cells, column: str) -> list[Message]:
    """The turns of one side; of a text, the assistant's one."""
    found = chat.turns(cells.get(column))
    if found is None:
        return [{"role": "assistant", "content": text(cells, column, "answer")}]
    messages = chat.conversation(found, column)
    if not messages or messages[-1]["role"] != "assistant":
        raise RowFault(f"'{column}' does not end with the assistant's answer", do="add it or delete the row")
    return messages


def _asked(layout: Layout, cells: Cells, answer: list[Message]) -> list[Message]:
    """The answer after its prompt, where it does not begin with it already."""
    messages, column = answer, layout.name("prompt")
    if all(m["role"] != "user" for m in answer):
        before = chat.turns(cells.get(column))
        if before is None:
            prompt = text(cells, column, "question")
            if not is_blank(cells.get(layout.name("input"))):
                prompt += "\n" + text(cells, layout.name("input"), "input")
            before = [{"role": "user", "content": prompt}]
        # One list again, so that a tool's answer finds the call that stands in the other half.
        messages = chat.conversation([*before, *answer], column)
    messages = chat.with_system(messages, cells.get(layout.name("system")), layout.name("system"))
    chat.check_answered(messages)
    return messages


def _tools(layout: Layout, cells: Cells) -> dict[str, Any]:
    tools = chat.tools(cells.get(layout.name("tools")), layout.name("tools"))
    return {"tools": tools} if tools else {}
