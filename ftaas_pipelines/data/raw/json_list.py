"""The elements of a JSON list of any size, as the pieces that are one row each."""

import re
from collections.abc import Iterator
from typing import BinaryIO

from ftaas_pipelines.data.raw.containers import PIECE
from ftaas_pipelines.data.raw.pieces import LIMIT, Piece, too_long
from ftaas_pipelines.errors import InputInvalid, Problem

_REST = rb'(?:[^"\\]++|\\.)*+"'  # of a string that has begun
_STRING_REST = re.compile(_REST, re.DOTALL)
_TO_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"' + _REST + rb")*+", re.DOTALL)
_TO_COMMA = re.compile(rb'(?:[^"\[\]{},]++|"' + _REST + rb")*+", re.DOTALL)
_QUOTE, _COMMA, _END = b'",]'
_DEEPER = b"[{"


def into_list(stream: BinaryIO, shown: str, at: int) -> tuple[int, int]:
    """Read up to the first element of a JSON list that begins after byte `at`. Returns its byte and line.

    Raises:
        InputInvalid: it is no list.
    """
    line, sign = 1, b" "
    while sign.isspace():
        sign, at = stream.read(1), at + 1
        line += sign == b"\n"
    if sign != b"[":
        what = "holds one object where a list of rows is expected" if sign == b"{" else "is no list of rows"
        raise InputInvalid(what, f"{shown}:{line}", do="write [row, row, …], or a row a line")
    return at, line


def elements(stream: BinaryIO, shown: str, at: int, line: int) -> Iterator[Piece]:
    """The elements of a JSON list, told apart by strings, brackets and commas before any is read.

    So a broken element costs one row, and an element of any length is passed over without being held. A
    comma after the last element is let be: it hides no row.

    Raises:
        InputInvalid: the list does not end, or something follows it: how many rows there are is not known.
    """
    element, depth, quoted, chunk_at = _Element(at, line), 0, False, at
    while chunk := _up_to_escape(stream):
        begin, rest = 0, _STRING_REST.match(chunk) if quoted else None
        scan = rest.end() if rest else len(chunk) if quoted else 0
        quoted = quoted and not rest
        while scan < len(chunk) and (scan := _next_sign(chunk, scan, depth)) < len(chunk):
            sign, scan = chunk[scan], scan + 1
            if sign == _QUOTE:  # of a string that goes on in the next chunk
                quoted, scan = True, len(chunk)
            elif sign in _DEEPER:
                depth += 1
            elif depth:
                depth -= 1
            elif sign == _COMMA or sign == _END:
                element.add(chunk[begin : scan - 1])
                begin = scan
                if sign == _COMMA or not element.is_blank:
                    yield element.piece(shown)
                if sign == _END:
                    return _check_nothing_follows(chunk[begin:], stream, shown, element)
                element = _Element(chunk_at + begin, element.next_line)
        element.add(chunk[begin:])
        chunk_at += len(chunk)
    what, do = "broken JSON: the list does not end", "mend the row that starts here, or fetch the whole file"
    raise InputInvalid(what, f"{shown}:{element.line}", do=do)


class _Element:
    """One element as its bytes come in; too many of them are counted and not held.

    Attributes:
        line: where it starts, or would.
        next_line: where what follows it starts.
    """

    __slots__ = ("_at", "_held", "_size", "line", "next_line")

    def __init__(self, at: int, line: int):
        self._at, self.line, self.next_line = at, line, line
        self._held, self._size = list[bytes](), 0

    @property
    def is_blank(self) -> bool:
        return not self._size

    def add(self, part: bytes) -> None:
        self.next_line += part.count(b"\n")
        if not self._size:
            text = part.lstrip()
            before = len(part) - len(text)
            self._at, self.line = self._at + before, self.line + part.count(b"\n", 0, before)
            part = text
        self._size += len(part)
        self._held.append(part) if self._size <= LIMIT else self._held.clear()

    def piece(self, shown: str) -> Piece:
        where = f"{shown}:{self.line}"
        if self._size > LIMIT:
            return Piece(self._at, self.line, too_long(where))
        if self.is_blank:
            missing = Problem("broken JSON: there is a comma and no row", where, do="delete the comma")
            return Piece(self._at, self.line, missing)
        return Piece(self._at, self.line, b"".join(self._held))


def _next_sign(chunk: bytes, scan: int, depth: int) -> int:
    """Where the next bracket is (between elements also a comma), or a string that the chunk cuts off."""
    found = (_TO_BRACKET if depth else _TO_COMMA).match(chunk, scan)
    return found.end() if found else scan


def _up_to_escape(stream: BinaryIO) -> bytes:
    """The next bytes; a backslash and the sign it escapes come together."""
    chunk = stream.read(PIECE)
    while chunk.endswith(b"\\") and (more := stream.read(1)):
        chunk += more
    return chunk


def _check_nothing_follows(rest: bytes, stream: BinaryIO, shown: str, last: _Element) -> None:
    while rest:
        if rest.strip():
            where, do = f"{shown}:{last.next_line}", "write one list"
            raise InputInvalid("broken JSON: there is more after the list's end", where, do=do)
        rest = stream.read(PIECE)
