"""The canonical record: what a raw row becomes, and its two identities.

`record_id` is the sha256 of the record as it came in (it survives cleaning and correction),
`content_id` of the record as it is now. Neither knows the source or the row it came from.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson

from ftaas_pipelines.data.raw.readers import Row
from ftaas_pipelines.data.rows import meaning, template_tokens
from ftaas_pipelines.data.rows.cells import Cells, RowFault, is_blank, json_text, parsed, plain, seen
from ftaas_pipelines.data.rows.formats import Layout
from ftaas_pipelines.data.rows.images import Images
from ftaas_pipelines.data.rows.messages import ROLES, Message, calls_text
from ftaas_pipelines.errors import Problem

__all__ = [
    "ROLES",
    "Message",
    "Record",
    "RowFault",
    "canonical",
    "check_columns",
    "identity",
    "reader",
    "template_token",
]

SYNTHETIC = "_synthetic"  # the column that says which model wrote a row
_UNKNOWN: dict[str, Any] = {"generator": "unknown", "prompt": "", "cost_usd": 0.0}


@dataclass(slots=True)
class Record:
    """One example on its way through `prepare`.

    Attributes:
        messages: all turns, the last one the assistant's answer; a plain text is that message alone.
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
        """What it can train: preference, labelled, prompt, text, text_pair or conversation."""
        for name, kind in (("rejected", "preference"), ("label", "labelled"), ("expected", "prompt")):
            if name in self.extra:
                return kind
        return {1: "text", 2: "text_pair"}.get(len(self.turns), "conversation")

    @property
    def prompt(self) -> str:
        """What is asked: one user turn as it is, several turns each after its role; of a text, nothing."""
        before = self.turns[:-1]
        if len(before) == 1:
            return _said(before[0])
        return "\n".join(f"{m['role']}: {_said(m)}" for m in before)

    @property
    def answer(self) -> str:
        """The last message's text; tool calls follow it as JSON."""
        return _said(self.messages[-1])

    @property
    def normal_prompt(self) -> str:
        """The prompt as duplicates across splits are told by: case and white space do not count.

        A plain text has no prompt: it is told by its own words, or all texts would be one.
        """
        return " ".join((self.prompt or self.answer).casefold().split())

    @property
    def group(self) -> str:
        """The splits' group key (sha256 hex, so that the anchors repeat no text)."""
        kind, value = (
            ("prompt", self.normal_prompt) if self.group_value is None else ("value", self.group_value)
        )
        return hashlib.sha256(f"{kind}\0{value}".encode()).hexdigest()

    @property
    def content_id(self) -> str:
        return identity(self.messages, self.extra)

    def payload(self) -> bytes:
        """The record as canonical JSON: a row that format `messages` reads as the same record."""
        return canonical(self.messages, self.extra)


def canonical(messages: list[Message], extra: dict[str, Any]) -> bytes:
    """Messages, and `extra` where there is any, as `store.canonical` would write them; faster.

    Raises:
        TypeError: a text holds half a surrogate pair, or `extra` what JSON does not hold.
    """
    value = {"messages": messages, "extra": extra} if extra else {"messages": messages}
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def identity(messages: list[Message], extra: dict[str, Any] | None = None) -> str:
    """sha256 (hex) of a record's canonical JSON."""
    return hashlib.sha256(canonical(messages, extra or {})).hexdigest()


def check_columns(
    columns: Sequence[str], path: Path | str, group_by: str | None, keep: Sequence[str]
) -> list[Problem]:
    """A problem for each column that the project names and the file has not."""
    wanted = [(group_by, "dataset.splits.group_by")] if group_by is not None else []
    wanted += [(name, "dataset.keep") for name in keep]
    got = f"columns {', '.join(columns)}"
    return [
        Problem(f"there is no column '{name}'", f"{path}:1", got, f"mend {option}")
        for name, option in wanted
        if name not in columns
    ]


def reader(
    layout: Layout,
    source: str,
    declared_split: str | None,
    synthetic: bool,
    group_by: str | None,
    keep: Sequence[str],
    images: Images | None = None,
) -> Callable[[Row], Record]:
    """The function that makes a record of a source's raw row.

    Args:
        layout: format and columns of the file.
        source: name of the source; `declared_split` and `synthetic` are what the project says of it.
        group_by: column whose value is the record's group.
        keep: columns that go along in `extra["columns"]` as JSON holds them.
        images: what copies the images that messages show; without it they stay named as they are.

    The function raises:
        RowFault: the row is no record.
    """
    read = meaning.of(layout)

    def record(row: Row) -> Record:
        cells = row.value
        messages, extra = read(cells)
        if keep:
            extra["columns"] = {name: plain(cells.get(name), name) for name in keep}
        if images is not None:
            images.keep(messages)
        return Record(
            _checked(messages, extra),
            messages,
            source,
            declared_split,
            row.line,
            None if group_by is None else _group_value(cells, group_by),
            extra,
            _synthetic(cells, synthetic) if synthetic or SYNTHETIC in cells else None,
        )

    return record


def template_token(messages: list[Message], extra: dict[str, Any]) -> tuple[str, str] | None:
    """The first token of a chat template in a record and where it stands; None for nearly every record."""
    if template_tokens.find(canonical(messages, extra)) is None:
        return None
    places = [(f"message {n}", m) for n, m in enumerate(messages, 1)]
    places += [(f"'{name}'", value) for name, value in sorted(extra.items())]
    for where, value in places:
        if token := template_tokens.find(orjson.dumps(value)):
            return token, where
    return None


def _checked(messages: list[Message], extra: dict[str, Any]) -> str:
    """The identity of a record that may be one."""
    try:
        data = canonical(messages, extra)
    except TypeError:
        raise _unwritable(messages, extra) from None
    if template_tokens.find(data) and (found := template_token(messages, extra)):
        token, where = found
        raise RowFault(
            "the text holds a template token", f"{token} in {where}", "delete the row or take the token out"
        )
    return hashlib.sha256(data).hexdigest()


def _unwritable(messages: list[Message], extra: dict[str, Any]) -> RowFault:
    """Why a record cannot be written: half a character, or too deep or too large for JSON."""
    try:
        text = json.dumps([messages, extra], ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError as error:
        return _half(error)
    except (ValueError, TypeError, RecursionError):
        pass
    return RowFault("the row cannot be written as JSON", "a number over 64 bits, or 250 levels of nesting")


def _half(error: UnicodeEncodeError) -> RowFault:
    half = f"U+{ord(error.object[error.start]):04X}"
    return RowFault("the text holds half a surrogate pair", half, "write the whole character")


def _said(message: Message) -> str:
    """All that a message says as one text: its words, its tool calls, and which images it shows."""
    if len(message) == 2:
        return message["content"]
    parts = [message["content"]] if message["content"] else []
    if message.get("tool_calls"):
        parts.append(calls_text(message))
    parts += [f"[image {image['sha256'] or image['ref']}]" for image in message.get("images", ())]
    return "\n".join(parts)


def _group_value(cells: Cells, group_by: str) -> str:
    value = plain(cells.get(group_by), group_by)
    if is_blank(value):
        raise RowFault(f"the row has no '{group_by}' to group by", do="write it or leave out splits.group_by")
    if not isinstance(value, str):
        return json_text(value, f"'{group_by}'")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _half(error) from None
    return value


def _synthetic(cells: Cells, declared: bool) -> dict[str, Any] | None:
    """Who wrote a row that no person wrote: generator, prompt and cost in US dollars.

    A row that names its generator is synthetic, also in a source that is not declared so.
    """
    given = plain(parsed(cells.get(SYNTHETIC)), SYNTHETIC)
    if is_blank(given):
        return dict(_UNKNOWN) if declared else None
    known = cast(dict[str, Any], given) if isinstance(given, dict) else {}
    said = {name: known[name] for name in _UNKNOWN if known.get(name) is not None}
    types = {"generator": str, "prompt": str, "cost_usd": (int, float)}
    if not said or not all(isinstance(value, types[name]) for name, value in said.items()):
        do = 'write {"generator", "prompt", "cost_usd"}'
        raise RowFault(f"'{SYNTHETIC}' does not say who wrote the row", seen(given), do)
    return {**_UNKNOWN, **said}
