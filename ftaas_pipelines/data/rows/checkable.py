"""Prompts with an answer that a program can check, such as GSM8K's."""

import re
from typing import Any

from ftaas_pipelines.data.rows.cells import Cells, RowFault, is_blank, seen, text
from ftaas_pipelines.data.rows.formats import CHECKED, Layout
from ftaas_pipelines.data.rows.messages import Message

# github.com/openai/grade-school-math, dataset.py: `#### (\-?[0-9\.\,]+)`, then commas go. A $ goes here too,
# and a comma only where it parts thousands: 3,5 stays.
_NUMBER = re.compile(r"-?\$?-?([0-9]{1,3}(,[0-9]{3})+|[0-9]+)?(\.[0-9]+)?")


def solved(layout: Layout, cells: Cells) -> tuple[list[Message], dict[str, Any]]:
    """The question with its full solution, and what is to be checked as `expected`.

    That is the column `expected`, or what stands after the solution's last `####`, or all of it.

    Raises:
        RowFault: question, solution or expected answer is missing.
    """
    question = text(cells, layout.name("question"), "question")
    solution = _said(cells, layout.name("answer"))
    column = layout.name("expected")
    if is_blank(cells.get(column)):
        _, mark, after = solution.rpartition(CHECKED)
        expected = after.strip().partition("\n")[0] if mark else solution
        if not expected.strip():
            raise RowFault("nothing stands after '####'", do="write the answer there or delete the row")
    else:
        expected = _said(cells, column)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": solution}]
    return messages, {"expected": _bare(expected)}


def _said(cells: Cells, column: str) -> str:
    """A text, or a number as text."""
    value = cells.get(column)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return text(cells, column, "answer")
    if value != value or value in (float("inf"), float("-inf")):
        raise RowFault(f"'{column}' is no number", seen(value), "write it or delete the row")
    return repr(value)


def _bare(answer: str) -> str:
    """An answer without what surrounds it: 1,234 and $1234 are the same number."""
    answer = answer.strip()
    return re.sub(r"[,$]", "", answer) if _NUMBER.fullmatch(answer) else answer
