"""The canonical record: what a raw row becomes, and its two identities.

`record_id` is the sha256 of the record as it came in (it survives cleaning and correction),
`content_id` of the record as it is now. Neither knows the source or the row it came from.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from ftaas_pipelines.data.formats import FORMATS, Layout
from ftaas_pipelines.data.readers import Row, Rows, shown
from ftaas_pipelines.errors import Problem
from ftaas_pipelines.store import digest_of

ROLES = ("system", "user", "assistant", "tool")
Message = dict[str, Any]  # {"role", "content"} and, where it has them, tool_calls, tool_call_id, name, images


class RowFault(ValueError):
    """One row is not a record; carries what, got and do of the problem."""

    def __init__(self, what: str, got: str = "", do: str = "mend or delete the row"):
        super().__init__(what)
        self.what, self.got, self.do = what, got, do


@dataclass(slots=True)
class Record:
    """One example on its way through `prepare`.

    Attributes:
        messages: all turns, the last one the assistant's answer.
        declared_split: train, validation, test or challenge where its source says so.
        line: where it stands in its source, from 1.
        group_value: value of `splits.group_by`; None when records group by their prompt.
        extra: what only some kinds have: tools, rejected, label, expected, columns.
        synthetic: generator, prompt and cost_usd where a model wrote it.
        language: ISO 639-1 code where cleaning looked at it.
    """

    record_id: str
    messages: list[Message]
    source: str
    declared_split: str | None
    line: int
    group_value: str | None = None
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    synthetic: dict[str, Any] | None = None
    language: str | None = None

    @property
    def turns(self) -> list[Message]:
        """The messages without a leading system message."""
        return self.messages[1:] if self.messages[0]["role"] == "system" else self.messages

    @property
    def kind(self) -> str:
        """text_pair for one question and its answer, else conversation."""
        return "text_pair" if len(self.turns) == 2 else "conversation"

    @property
    def prompt(self) -> str:
        """What is asked: one user turn as it is, several turns each after its role."""
        before = self.turns[:-1]
        if len(before) == 1:
            return before[0]["content"]
        return "\n".join(f"{m['role']}: {m['content']}" for m in before)

    @property
    def answer(self) -> str:
        return self.messages[-1]["content"]

    @property
    def normal_prompt(self) -> str:
        """The prompt as duplicates across splits are told by: case and white space do not count."""
        return " ".join(self.prompt.casefold().split())

    @property
    def group(self) -> str:
        """The splits' group key (sha256 hex, so that the anchors repeat no text)."""
        kind, value = (
            ("prompt", self.normal_prompt) if self.group_value is None else ("value", self.group_value)
        )
        return hashlib.sha256(f"{kind}\0{value}".encode()).hexdigest()

    @property
    def content_id(self) -> str:
        return identity(self.messages)


def identity(messages: list[Message]) -> str:
    """sha256 (hex) of a record's messages."""
    return digest_of({"messages": messages})


def from_rows(
    rows: Rows, layout: Layout, source: str, declared_split: str | None, group_by: str | None
) -> tuple[list[Record], list[Problem]]:
    """Every row of a file as a record, and a problem for each row that is none."""
    records: list[Record] = []
    problems = list(rows.problems)
    if rows.rows and group_by is not None and group_by not in rows.columns:
        problems.append(
            Problem(
                f"there is no column '{group_by}'",
                f"{rows.path}:1",
                f"columns {', '.join(rows.columns)}",
                "mend dataset.splits.group_by",
            )
        )
        group_by = None  # said once, not once a row
    for row in rows.rows:
        try:
            messages = _messages(row.value, layout)
            for message in messages:
                _check_encodable(message["content"])
            group = _group_value(row, group_by)
        except RowFault as fault:
            problems.append(Problem(fault.what, f"{rows.path}:{row.line}", fault.got, fault.do))
            continue
        records.append(Record(identity(messages), messages, source, declared_split, row.line, group))
    return records, sorted(problems, key=lambda p: int(p.where.rpartition(":")[2]))


def _messages(value: Mapping[str, Any], layout: Layout) -> list[Message]:
    if layout.format == "messages":
        return _conversation(value.get(layout.name("messages")), layout.name("messages"))
    question, answer = FORMATS[layout.format].required
    prompt = _text(value, layout.name(question), "question")
    if layout.format == "alpaca" and value.get(layout.name("input")):
        prompt += "\n" + _text(value, layout.name("input"), "input")
    return [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": _text(value, layout.name(answer), "answer")},
    ]


def _text(value: Mapping[str, Any], column: str, meaning: str) -> str:
    text = value.get(column)
    if text is None or (isinstance(text, str) and not text.strip()):
        state = "missing" if column not in value else "empty"
        raise RowFault(f"the row has no {meaning}: '{column}' is {state}", do="write it or delete the row")
    if not isinstance(text, str):
        raise RowFault(f"'{column}' is not text", shown(text), "write it in quotes")
    return text


def _conversation(value: Any, column: str) -> list[Message]:
    if isinstance(value, str):  # CSV and some Parquet files carry the list as JSON text
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowFault(f"'{column}' is not a list of messages", shown(value)) from None
    if not isinstance(value, list) or not value:
        raise RowFault(
            f"'{column}' is not a list of messages", shown(value), 'write [{"role", "content"}, …]'
        )
    messages = [_message(item, i) for i, item in enumerate(cast(list[Any], value), 1)]
    roles = [m["role"] for m in messages]
    if "system" in roles[1:]:
        raise RowFault("a system message does not come first", f"roles {', '.join(roles)}", "put it first")
    if roles[-1] != "assistant":
        raise RowFault(
            "the row has no answer: the last message is not the assistant's",
            f"role '{roles[-1]}'",
            "add the answer or delete the row",
        )
    if "user" not in roles:
        raise RowFault("no message is the user's", f"roles {', '.join(roles)}")
    return messages


def _message(item: Any, number: int) -> Message:
    if not isinstance(item, dict):
        raise RowFault(f"message {number} is not an object", shown(item), 'write {"role", "content"}')
    message = cast(dict[str, Any], item)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise RowFault(
            f"role {shown(role)} is not one of {', '.join(ROLES)}", f"message {number}", "rename it"
        )
    if not isinstance(content, str):
        raise RowFault(f"the content of message {number} is not text", shown(content), "write it in quotes")
    if not content.strip():
        meaning = "answer" if role == "assistant" else "text"
        raise RowFault(
            f"the row has no {meaning}: message {number} is empty", do="write it or delete the row"
        )
    return {"role": role, "content": content}


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise RowFault("the text holds half a surrogate pair", half, "write the whole character") from None


def _group_value(row: Row, group_by: str | None) -> str | None:
    if group_by is None:
        return None
    value = row.value.get(group_by)
    if value is None or value == "":
        raise RowFault(f"the row has no '{group_by}' to group by", do="write it or leave out splits.group_by")
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
