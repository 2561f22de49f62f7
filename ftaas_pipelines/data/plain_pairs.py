"""The short way through a shard: one question, one answer, and nothing that any step has to change.

Most rows of most datasets are such pairs. They are told by looking at whole columns (Arrow, numpy), never
built as records one by one; every other row goes the long way (`records`, `cleaning`, `privacy`), which
says what is right: both ways make the same of a row, and a test holds them to it.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute
import pyarrow.json as pj

from ftaas_pipelines.data.cleaning.cleaner import Cleaner
from ftaas_pipelines.data.inputs import DatasetInputs, SourceInput
from ftaas_pipelines.data.privacy.screen import Screen
from ftaas_pipelines.data.raw import pieces
from ftaas_pipelines.data.raw.pieces import Piece
from ftaas_pipelines.data.raw.shards import Shard
from ftaas_pipelines.data.rows.formats import FORMATS, Layout
from ftaas_pipelines.data.rows.records import SYNTHETIC

pc: Any = pyarrow.compute  # its functions are made at run time
BLOCK = 4 * 2**20  # raw bytes looked at together
_TAB, _NEWLINE, _SPACE, _DELETE, _LESS = 9, 10, 32, 127, ord("<")
_INST = re.compile(rb"INST\]")
_SYNTHETIC = f'"{SYNTHETIC}"'.encode()
_DEEP = 1000  # brackets of a row: it may be nested as deeply as no JSON reader but Arrow's reads
_BRACKETS = np.frombuffer(b"[{", np.uint8)
_ROLES = ("user", "assistant")
_TEXT: Any = pa.string()


@dataclass(frozen=True)
class Pairs:
    """Rows that need nothing done, as columns.

    Attributes:
        line: int64; `prompt`, `answer`: Arrow strings; `normal`: the normalised prompts.
        record_id, group: sha256, 32 bytes each, one after the other.
    """

    line: Any
    prompt: Any
    answer: Any
    normal: list[bytes]
    record_id: bytes
    group: bytes


class Lane:
    """The short way through one shard."""

    def __init__(self, raw: Shard, layout: Layout, inputs: DatasetInputs, screen: Screen):
        self._raw, self._layout, self._screen = raw, layout, screen
        self._cleaner = Cleaner(inputs.cleaning)
        self._low, self._high = max(1, inputs.cleaning.min_characters), inputs.cleaning.max_characters
        self._others = "ignore"
        if layout.format == "messages":
            # Never inferred: Arrow 25 ends the process on lists that begin with null (`[null, {}]`).
            turn = pa.struct([("role", _TEXT), ("content", _TEXT)])
            self._schema, self._others = pa.schema([(layout.name("messages"), pa.list_(turn))]), "error"
        else:
            names = [layout.name(ours) for ours in FORMATS[layout.format].columns]
            self._schema = pa.schema([(name, _TEXT) for name in names])

    @staticmethod
    def is_open(raw: Shard, layout: Layout, source: SourceInput, inputs: DatasetInputs) -> bool:
        """Whether rows of this shard may go the short way: no option asks for more than a look."""
        c = inputs.cleaning
        asks = (c.html, c.boilerplate, c.collapse_white_space, c.languages, c.min_tokens, c.max_tokens)
        simple = layout.format in ("alpaca", "prompt_completion", "text_target", "messages")
        alone = not (inputs.group_by or inputs.keep or inputs.system or source.synthetic)
        return raw.container == "JSONL" and simple and alone and not any(asks) and c.quality == "off"

    def blocks(self) -> Iterator[tuple[Pairs | None, list[Piece]]]:
        """Block by block: the pairs that need nothing, and the lines that go the long way."""
        at, line = self._raw.start, self._raw.line
        with open(self._raw.path, "rb") as stream:
            stream.seek(at)
            while at < self._raw.end:
                data = stream.read(min(BLOCK, self._raw.end - at))
                if not data:
                    return  # the file grew shorter; the stage looks whether its files are what they were
                if not data.endswith(b"\n"):
                    rest = stream.readline(pieces.LIMIT + 1)
                    if len(data) + len(rest) > pieces.LIMIT:
                        stream.seek(at)
                        found = pieces.lines(stream, self._raw.shown, at, line, blank=False)
                        yield None, list(takewhile(lambda piece: piece.at < self._raw.end, found))
                        return
                    data += rest
                ends = np.flatnonzero(np.frombuffer(data, np.uint8) == _NEWLINE)
                if not data.endswith(b"\n"):
                    ends = np.append(ends, len(data))
                yield self._read(data, ends, at, line)
                at, line = at + len(data), line + len(ends)

    def _read(self, data: bytes, ends: Any, at: int, line: int) -> tuple[Pairs | None, list[Piece]]:
        columns = self._columns(data, len(ends))
        short = np.zeros(len(ends), np.bool_) if columns is None else self._needs_nothing(*columns)
        if self._others == "ignore" and data.count(b"[") + data.count(b"{") - len(ends) > _DEEP:
            brackets = np.flatnonzero(np.isin(np.frombuffer(data, np.uint8), _BRACKETS))
            short &= np.bincount(np.searchsorted(ends, brackets), minlength=len(ends)) <= _DEEP
        rest: list[Piece] = []
        for i in np.flatnonzero(~short).tolist():
            start = int(ends[i - 1]) + 1 if i else 0
            raw = data[start : int(ends[i]) + 1]
            if not raw.isspace():
                rest.append(Piece(at + start, line + i, raw))
        if columns is None or not short.any():
            return None, rest
        prompt, answer = columns
        if not short.all():
            mask = pa.array(short)
            prompt, answer = prompt.filter(mask), answer.filter(mask)
        return _pairs(prompt, answer, line + np.flatnonzero(short)), rest

    def _columns(self, data: bytes, rows: int) -> tuple[Any, Any] | None:
        """The block's prompts and answers; None where it is not plain: then each row is looked at."""
        # Arrow takes two objects in one line, and one in two lines, for rows; a `null` before the first
        # object ends the process. So: every line begins and ends with a bracket.
        between = data.count(b"}\n{") + data.count(b"}\r\n{")
        if between != rows - 1 or not data.startswith(b"{") or not data[-9:].rstrip().endswith(b"}"):
            return None
        parse = pj.ParseOptions(explicit_schema=self._schema, unexpected_field_behavior=self._others)
        read = pj.ReadOptions(use_threads=False, block_size=len(data) + 1)
        try:
            table = pj.read_json(pa.BufferReader(data), read_options=read, parse_options=parse)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return None
        if len(table) != rows or _SYNTHETIC in data:  # no row a line, or rows that name who wrote them
            return None
        if self._layout.format == "messages":
            return _conversation(table[self._layout.name("messages")].combine_chunks())
        question, answer = (self._layout.name(ours) for ours in FORMATS[self._layout.format].required)
        prompt = table[question].combine_chunks()
        context = self._layout.name("input")
        if self._layout.format == "alpaca" and table[context].null_count < rows:
            given = pc.fill_null(table[context].combine_chunks(), "")
            # Nothing but white space is a fault: such a row loses its prompt here and goes the long way.
            blank = pc.and_(pc.not_equal(given, ""), pc.equal(pc.utf8_trim_whitespace(given), ""))
            joined = pc.binary_join_element_wise(prompt, given, "\n")
            prompt = pc.if_else(
                blank, pa.scalar(None, _TEXT), pc.if_else(pc.equal(given, ""), prompt, joined)
            )
        return prompt, table[answer].combine_chunks()

    def _needs_nothing(self, prompt: Any, answer: Any) -> Any:
        short = self._quiet(prompt) & self._quiet(answer)
        for column in (prompt, answer):
            short &= ~self._screen.may_find(column)
        return short

    def _quiet(self, column: Any) -> Any:
        """Which texts no cleaning step changes or drops: of allowed length, without blank ends, in NFC."""
        offsets, data = _buffers(column)
        lengths = np.diff(offsets)
        quiet = (lengths >= self._low) & (lengths <= self._high) & ~np.asarray(column.is_null())
        if not len(data):
            return quiet & False
        quiet &= (data[np.minimum(offsets[:-1], len(data) - 1)] > _SPACE) & (data[offsets[1:] - 1] > _SPACE)
        # Bytes that some step may have to do with: control characters (not tab and newline) and `<`, which
        # template tokens begin with (_INST finds the others). Of what is not ASCII, each row is asked.
        odd = np.flatnonzero((data < _SPACE) | (data >= _DELETE) | (data == _LESS))
        bytes_ = data[odd]
        loud = odd[(bytes_ <= _DELETE) & (bytes_ != _TAB) & (bytes_ != _NEWLINE)]
        inst = np.array([m.start() for m in _INST.finditer(data)], np.int64)
        quiet[_rows_of(np.concatenate([loud, inst]), offsets)] = False
        foreign = _rows_of(odd[bytes_ > _DELETE], offsets)
        foreign = foreign[quiet[foreign]]
        texts = column.take(pa.array(foreign)).to_pylist()
        quiet[foreign] = [self._is_settled(text) for text in texts]
        return quiet

    def _is_settled(self, text: str) -> bool:
        return self._low <= len(text) and text.strip() == text and self._cleaner.is_settled(text)


def _conversation(column: Any) -> tuple[Any, Any] | None:
    """Prompts and answers of a `messages` column in which every row asks once and is answered once."""
    if column.null_count:
        return None
    turns = column.flatten()
    offsets = np.asarray(column.offsets)
    if turns.null_count or (np.diff(offsets) != 2).any():
        return None
    roles, contents = turns.field("role"), turns.field("content")
    first = pa.array(np.arange(0, len(turns), 2))
    second = pa.array(np.arange(1, len(turns), 2))
    for place, role in zip((first, second), _ROLES, strict=True):
        if not pc.all(pc.equal(roles.take(place), role), min_count=0, skip_nulls=False).as_py():
            return None
    return contents.take(first), contents.take(second)


def _pairs(prompt: Any, answer: Any, line: Any) -> Pairs:
    prompts, answers = prompt.to_pylist(), answer.to_pylist()
    dumps, sha = orjson.dumps, hashlib.sha256
    payload = b'{"messages":[{"content":%b,"role":"user"},{"content":%b,"role":"assistant"}]}'
    ids = [sha(payload % (dumps(p), dumps(a))).digest() for p, a in zip(prompts, answers, strict=True)]
    normal = _normal(prompt, prompts)
    groups = [sha(b"prompt\0" + text).digest() for text in normal]
    return Pairs(line, prompt, answer, normal, b"".join(ids), b"".join(groups))


def _normal(prompt: Any, prompts: list[str]) -> list[bytes]:
    """Of printable ASCII, lower case is all that `casefold` does; most texts have single spaces."""
    offsets, data = _buffers(prompt)
    if not len(data):
        return [b""] * len(prompts)
    space = data == _SPACE
    odd = np.flatnonzero(space[:-1] & space[1:])  # of two texts side by side: looked at for nothing
    odd = np.concatenate([odd, np.flatnonzero((data < _SPACE) | (data > _DELETE))])
    normal: list[bytes] = pc.ascii_lower(prompt).cast(pa.binary()).to_pylist()
    for row in _rows_of(odd, offsets).tolist():
        normal[row] = " ".join(prompts[row].casefold().split()).encode()
    return normal


def _buffers(column: Any) -> tuple[Any, Any]:
    """A string array's offsets (from 0) and bytes, without a copy."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    whole = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return ends - ends[0], whole[ends[0] : ends[-1]]


def _rows_of(places: Any, offsets: Any) -> Any:
    """The rows in which these bytes stand."""
    return np.unique(np.searchsorted(offsets, places, "right") - 1)
