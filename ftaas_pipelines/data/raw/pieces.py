"""A text container as pieces that are one row each, and what a piece says.

Everything that reads text goes through here, be it a whole file, its beginning or a shard: what is a row
never depends on where the reading began. No row over `LIMIT` is held in memory.
"""

import csv
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO, NamedTuple, cast

import orjson

from ftaas_pipelines.data.raw.containers import PIECE
from ftaas_pipelines.errors import InputInvalid, Problem

LIMIT = 64 * 2**20  # bytes of one row
_DIGITS = bytes(ord("0") if byte in b"0123456789" else ord(" ") for byte in range(256))
_NAMES: dict[type, str] = {
    list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false", type(None): "null"
}  # fmt: skip


class Row(NamedTuple):
    """One raw row. `line` is the line it starts on (Parquet and Arrow: the row), from 1."""

    line: int
    value: dict[str, Any]


class Piece(NamedTuple):
    """One row before it is understood.

    Attributes:
        at: byte it starts at.
        line: line it starts on.
        held: its bytes (CSV: its cells), or what is wrong with it.
    """

    at: int
    line: int
    held: bytes | list[str] | Problem


def too_long(where: str) -> Problem:
    return Problem(f"the row is longer than {LIMIT >> 20} MiB", where, do="split it or delete it")


def check_names(names: Sequence[str], where: str) -> None:
    """Raise where a column's name stands twice.

    Raises:
        InputInvalid: it does.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputInvalid(f"the column '{twice[0]}' stands twice", where, do="rename one")


# -- from a stream to pieces ---------------------------------------------------------------------------


def delimiter(head: bytes) -> str:
    """The delimiter of a CSV file that begins so."""
    first = head.lstrip().partition(b"\n")[0]
    return max(",;\t", key=lambda sign: first.count(sign.encode()))


def header(found: Iterator[Piece], shown: str) -> tuple[str, ...]:
    """The column names of a CSV file: its first record, taken from those found.

    Raises:
        InputInvalid: it is not CSV, or a name stands twice.
    """
    for _, line, cells in found:
        if isinstance(cells, Problem):
            raise InputInvalid([cells])
        names = tuple(name.strip() for name in cast(list[str], cells))
        check_names(names, f"{shown}:{line}")
        return names
    return ()


def lines(stream: BinaryIO, shown: str, at: int, line: int, *, blank: bool) -> Iterator[Piece]:
    """Lines with their ends, blank ones too where asked; only LF ends one (a JSON text may hold U+2028)."""
    while raw := stream.readline(LIMIT + 1):
        size = len(raw)
        if size <= LIMIT:
            if blank or not raw.isspace():
                yield Piece(at, line, raw)
        else:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(PIECE)
                size += len(raw)
            yield Piece(at, line, too_long(f"{shown}:{line}"))
        at, line = at + size, line + 1


def documents(found: Iterator[Piece], shown: str) -> Iterator[Piece]:
    """Text between blank lines."""
    at, line, size, held = 0, 0, 0, list[bytes]()
    for piece in found:
        if isinstance(piece.held, Problem) or not cast(bytes, piece.held).isspace():
            at, line = (at, line) if size else (piece.at, piece.line)
            size += LIMIT + 1 if isinstance(piece.held, Problem) else len(piece.held)
            held.append(piece.held) if isinstance(piece.held, bytes) and size <= LIMIT else held.clear()
        elif size:
            yield _document(at, line, size, held, shown)
            size, held = 0, list[bytes]()
    if size:
        yield _document(at, line, size, held, shown)


def _document(at: int, line: int, size: int, held: list[bytes], shown: str) -> Piece:
    text = b"".join(held).rstrip(b"\r\n")
    return Piece(at, line, too_long(f"{shown}:{line}") if size > LIMIT else text)


# -- CSV -----------------------------------------------------------------------------------------------


class _TooLong(Exception):
    """A record grew over the limit."""


class _Feed:
    """Lines for `csv.reader`, kept until the record they belong to is whole."""

    def __init__(self, lines: Iterator[Piece]):
        self._lines, self._waiting, self._size = lines, deque[Piece](), 0
        self.taken = list[Piece]()

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        piece = self._waiting.popleft() if self._waiting else next(self._lines)
        self.taken.append(piece)
        self._size += LIMIT + 1 if isinstance(piece.held, Problem) else len(piece.held)
        if self._size > LIMIT:
            raise _TooLong
        return cast(bytes, piece.held).decode()

    def first(self) -> Piece | None:
        """The line the next record begins with; what was taken for the last one is forgotten."""
        self.taken, self._size = [], 0
        if not self._waiting:
            self._waiting.extend(islice(self._lines, 1))
        return self._waiting[0] if self._waiting else None

    def skip(self) -> None:
        self._waiting.popleft()

    def put_back(self) -> None:
        """All lines but the first will be given again."""
        self._waiting.extendleft(reversed(self.taken[1:]))


def records(found: Iterator[Piece], shown: str, delimiter: str, cells: bool) -> Iterator[Piece]:
    """CSV records, strictly; after one that is broken, reading goes on at the line after its first.

    So an open quote costs one row, and not all the rows up to the next quote.
    """
    csv.field_size_limit(LIMIT)  # length is for cleaning to judge; the default is 128 KiB
    feed = _Feed(found)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while first := feed.first():
        if not cells and isinstance(first.held, bytes) and b'"' not in first.held:
            feed.skip()
            if first.held.strip(b"\r\n"):
                yield first
            continue
        where = f"{shown}:{first.line}"
        try:
            held = next(reader)
        except csv.Error as error:
            do = 'put the text in quotes and double the quotes in it ("")'
            held = Problem(f"is not CSV: {str(error).partition(' - ')[0]}", where, do=do)
        except _TooLong:
            held = too_long(where)
        if isinstance(held, Problem):
            feed.put_back()
        elif any(b"\0" in cast(bytes, piece.held) for piece in feed.taken):
            held = Problem("the row holds a NUL byte", where, do="delete the byte")
        if held:
            yield Piece(first.at, first.line, held)


# -- from a piece to its row ---------------------------------------------------------------------------


def understood(
    found: Iterable[Piece], container: str, columns: Sequence[str], shown: str, end: float
) -> Iterator[Row | Problem]:
    """What the pieces that start before byte `end` say: one row or one problem each."""
    for at, line, held in found:
        if at >= end:
            return
        if isinstance(held, Problem):
            yield held
        elif isinstance(held, list):
            yield _named(held, line, columns, shown)
        elif container == "text":
            yield Row(line, {"text": held.decode()})
        else:
            yield _object(held, line, shown)


def _named(cells: list[str], line: int, columns: Sequence[str], shown: str) -> Row | Problem:
    if len(cells) <= len(columns):
        return Row(line, dict(zip(columns, cells, strict=False)))
    got, do = f"{len(cells)} cells for {len(columns)} columns", "quote text that has the delimiter in it"
    return Problem("the row has more cells than the header", f"{shown}:{line}", got, do)


def _object(held: bytes, line: int, shown: str) -> Row | Problem:
    try:
        value = _json(held)
    except json.JSONDecodeError as error:  # where, not what: a row's text may be what no log should hold
        reason, line = f"{error.msg}, character {error.colno} of the row", line + error.lineno - 1
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:
        reason = str(error)
    else:
        if isinstance(value, dict):
            return Row(line, cast(dict[str, Any], value))
        got = _NAMES[type(value)]
        return Problem("the row is not an object", f"{shown}:{line}", got, 'write {"column": "text", …}')
    return Problem(f"broken JSON: {reason}", f"{shown}:{line}", do="mend or delete the row")


def _json(held: bytes) -> Any:
    if b"0" * 19 not in held.translate(_DIGITS):  # orjson rounds whole numbers of more than 64 bits
        try:
            return orjson.loads(held)
        except orjson.JSONDecodeError:
            pass  # NaN, half a surrogate pair, a thousand levels; or broken, and `json` says where
    return json.loads(held.rstrip(b" \t\r\n").decode())  # a row that breaks off does so in its own line
