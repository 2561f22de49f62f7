"""Work shards: pieces of raw files that are read each by itself, in any process, and give the same rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ftaas_pipelines.data.raw import columnar, containers
from ftaas_pipelines.data.raw.json_list import into_list
from ftaas_pipelines.data.raw.pieces import Row, delimiter, header, understood
from ftaas_pipelines.data.raw.readers import no_rows, split
from ftaas_pipelines.errors import Problem

SIZE = 32 * 2**20  # raw bytes of one shard
_BUFFER = 2**20


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows that stand together in one file. Plain data: it pickles, and its fields are JSON.

    Attributes:
        path: an uncompressed UTF-8 file, or a Parquet or Arrow file.
        shown: what errors call the file.
        sha256: of the raw file.
        source: name of the source it belongs to.
        container: CSV, JSONL, JSON, text, Parquet or Arrow.
        start: byte its first row starts at (Parquet and Arrow: row, from 0).
        end: rows that start before this byte (row) belong to it; the last may reach beyond.
        line: of its first row, from 1 (Parquet and Arrow: number of the row).
        columns: of a CSV, Parquet or Arrow file.
        delimiter: of a CSV file.
    """

    path: str
    shown: str
    sha256: str
    source: str
    container: str
    start: int
    end: int
    line: int
    columns: tuple[str, ...] = ()
    delimiter: str = ","


def cut(
    path: Path, spool: Path, encoding: str, source: str, sha256: str, shown: str, size: int = SIZE
) -> list[Shard]:
    """Cut a file into shards of about `size` bytes, by streaming it; at least one.

    Compressed files and other encodings than UTF-8 are unpacked into `spool` once; the shards lie there.

    Args:
        sha256: of the raw file.
        shown: what errors call the file.

    Raises:
        InputInvalid: it is not there, empty or without rows, of another encoding or container than said, cut
            off, damaged, or unpacks without measure; or its rows cannot be told apart.
    """
    plain = containers.plain(path, spool, encoding, sha256, shown)
    shard = partial(Shard, str(plain.path), shown, sha256, source, plain.container)
    if plain.container in containers.COLUMNAR:
        return _cut_table(plain, shown, size, shard)
    return _cut_text(plain, shown, size, shard)


def rows(shard: Shard) -> Iterator[Row | Problem]:
    """The shard's rows one by one, and a problem for each that cannot be read.

    Raises:
        InputInvalid: a Parquet or Arrow file is damaged on the way.
    """
    if shard.container in containers.COLUMNAR:
        yield from columnar.rows(Path(shard.path), shard.container, shard.shown, shard.start, shard.end)
        return
    with open(shard.path, "rb", _BUFFER) as stream:
        stream.seek(shard.start)
        found = split(stream, shard.container, shard.shown, shard.start, shard.line, shard.delimiter)
        yield from understood(found, shard.container, shard.columns, shard.shown, shard.end)


def _cut_text(plain: containers.Plain, shown: str, size: int, shard: partial[Shard]) -> list[Shard]:
    container, sign, columns, at, line = plain.container, delimiter(plain.head), (), plain.start, 1
    with plain.path.open("rb", _BUFFER) as stream:
        stream.seek(at)
        if container == "JSON":
            at, line = into_list(stream, shown, at)
        found = split(stream, container, shown, at, line, sign)
        if container == "CSV":
            columns = header(found, shown)
        first = next(found, None)
        if first is None:
            raise no_rows(container, columns, shown)
        stream.seek(first.at)
        if container == "JSONL":
            end = plain.path.stat().st_size
            return [shard(*place) for place in _by_lines(stream, first.at, first.line, end, size)]
        out, at, line = list[Shard](), first.at, first.line
        for piece in split(stream, container, shown, at, line, sign, cells=False):
            if piece.at - at >= size:
                out.append(shard(at, piece.at, line, columns, sign))
                at, line = piece.at, piece.line
        return [*out, shard(at, plain.path.stat().st_size, line, columns, sign)]


def _by_lines(stream: BinaryIO, at: int, line: int, end: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Start, end and first line of every shard: where each line is a row, newlines need only be counted."""
    while at < end:
        stop, newlines, block, blank = at, 0, b"", True
        while stop - at < size and (block := stream.read(min(_BUFFER, at + size - stop))):
            stop, newlines, blank = stop + len(block), newlines + _newlines(block), blank and block.isspace()
        while block and not block.endswith(b"\n"):
            block = stream.readline(_BUFFER)
            stop, newlines, blank = stop + len(block), newlines + block.endswith(b"\n"), False
        if not blank:
            yield at, stop, line
        at, line = stop, line + newlines


def _newlines(block: bytes) -> int:
    """`bytes.count` looks for one after the other; this compares 32 bytes at a time."""
    return int(np.count_nonzero(np.frombuffer(block, np.uint8) == ord("\n")))


def _cut_table(plain: containers.Plain, shown: str, size: int, shard: partial[Shard]) -> list[Shard]:
    """Parts are put together up to `size`; a part that is larger is cut by rows."""
    names = columnar.columns(plain.path, plain.container, shown)
    out, start, end, held = list[Shard](), 0, 0, 0
    for part in columnar.parts(plain.path, plain.container, shown):
        if held and held + part.bytes > size:
            out.append(shard(start, end, start + 1, names))
            start, held = end, 0
        after, step = end + part.rows, part.step(part.rows, size)
        while after - end > step:
            end += step
            out.append(shard(start, end, start + 1, names))
            start = end
        held, end = held + (after - end) * part.bytes // max(1, part.rows), after
    if end > start:
        out.append(shard(start, end, start + 1, names))
    if not out:
        raise no_rows(plain.container, names, shown)
    return out
