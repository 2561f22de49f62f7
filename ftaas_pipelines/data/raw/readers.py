"""What a data file holds: its container, its columns, its rows, and what in it cannot be read.

Nothing here knows what a row means (`formats`) and nothing is bent into shape: what cannot be read is
a problem with `file:line`, and reading goes on so that all of a file's problems show at once. Whole
sources are read shard by shard (`shards`), through the same parsers.
"""

import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from ftaas_pipelines.data.raw import columnar, containers
from ftaas_pipelines.data.raw.json_list import elements, into_list
from ftaas_pipelines.data.raw.pieces import (
    Piece,
    Row,
    delimiter,
    documents,
    header,
    lines,
    records,
    understood,
)
from ftaas_pipelines.errors import InputInvalid, Problem

__all__ = ["Row", "Rows", "load", "look", "raise_all", "read", "shown"]

SHOWN = 20  # problems of one reading that are printed; the rest is counted
LOOKED_AT = 200  # rows that tell a file's columns


@dataclass
class Rows:
    """What one file holds, or begins with.

    Attributes:
        container: CSV, JSONL, JSON, text, Parquet or Arrow.
        columns: names found, in the order of the file.
        problems: what could not be read.
    """

    path: Path
    container: str
    columns: list[str] = field(default_factory=list[str])
    rows: list[Row] = field(default_factory=list[Row])
    problems: list[Problem] = field(default_factory=list[Problem])

    def fill(self, found: Iterator[Row | Problem]) -> None:
        """Take rows and problems, up to one that hides all that follows."""
        try:
            for row in found:
                self.problems.append(row) if isinstance(row, Problem) else self.rows.append(row)
        except InputInvalid as error:
            self.problems.extend(error.problems)
        if not self.rows and not self.problems:
            self.problems.extend(no_rows(self.container, self.columns, str(self.path)).problems)
        if not self.columns:
            self.columns = list(dict.fromkeys(name for row in self.rows[:LOOKED_AT] for name in row.value))


def raise_all(problems: Sequence[Problem]) -> None:
    """Raise the problems as one error, the first 20 spelled out.

    Raises:
        InputInvalid: there is at least one.
    """
    if not problems:
        return
    rest = len(problems) - SHOWN
    more = [Problem(f"and {rest} more problems", do="mend these first")] if rest > 0 else []
    raise InputInvalid([*problems[:SHOWN], *more])


def shown(value: Any, width: int = 60) -> str:
    """A value as an error names it: its repr, cut."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 1] + "…"


def split(
    stream: BinaryIO, container: str, shown: str, at: int, line: int, delimiter: str, *, cells: bool = True
) -> Iterator[Piece]:
    """Every piece of a stream that stands at the start of a row, byte `at` and line `line`.

    Args:
        cells: False when only places are wanted; CSV rows without a quote are then not taken apart.
    """
    if container == "JSON":
        return elements(stream, shown, at, line)
    found = lines(stream, shown, at, line, blank=container != "JSONL")
    if container == "CSV":
        return records(found, shown, delimiter, cells)
    return documents(found, shown) if container == "text" else found


def no_rows(container: str, columns: Sequence[str], where: str) -> InputInvalid:
    """A file without a row: nothing but white space, or a header, an empty list or an empty table."""
    if container in ("JSONL", "text") or (container == "CSV" and not columns):
        return containers.empty(where)
    return InputInvalid(
        "the file holds no rows", f"{where}:1", f"{container} without a row", "put rows into it"
    )


def load(path: Path) -> bytes:
    """The bytes of a data file.

    Raises:
        InputInvalid: it is not there, is no file, cannot be opened, or is empty.
    """
    with containers.open_file(path, str(path)) as file:
        data = file.readall()
    if not data.strip():
        raise containers.empty(str(path))
    return data


def look(path: Path, encoding: str = "utf-8") -> Rows:
    """The first 200 rows of a file; no more of it is read or unpacked (a compressed Parquet file is).

    Raises:
        InputInvalid: nothing of it can be read: wrong encoding, another kind of file than its name says.
    """
    name = str(path)
    with (
        containers.open_file(path, name) as file,
        containers.opened(file, path.name, encoding, name) as source,
    ):
        if source.container not in containers.COLUMNAR:
            return _text(path, source, LOOKED_AT)
    with tempfile.TemporaryDirectory() as spool:
        plain = containers.plain(path, Path(spool), encoding, "looked-at", name)
        return _table(path, plain.container, plain.path, LOOKED_AT)


def read(path: Path, data: bytes, encoding: str = "utf-8") -> Rows:
    """Every row of a small file's bytes, and every problem met on the way.

    Raises:
        InputInvalid: nothing of it can be read: wrong encoding, another kind of file than its name says.
    """
    with containers.opened(io.BytesIO(data), path.name, encoding, str(path)) as source:
        if source.container not in containers.COLUMNAR:
            return _text(path, source, None)
        return _table(path, source.container, source.stream.read(), None)


def _text(path: Path, source: containers.Opened, count: int | None) -> Rows:
    out, name, sign, at, line = Rows(path, source.container), str(path), delimiter(source.head), 0, 1
    try:
        if out.container == "JSON":
            at, line = into_list(source.stream, name, at)
        found = split(source.stream, out.container, name, at, line, sign)
        if out.container == "CSV":
            out.columns = list(header(found, name))
    except InputInvalid as error:
        out.problems.extend(error.problems)
        return out
    out.fill(islice(understood(found, out.container, out.columns, name, float("inf")), count))
    return out


def _table(path: Path, container: str, source: Path | bytes, count: int | None) -> Rows:
    out = Rows(path, container)
    try:
        out.columns = list(columnar.columns(source, container, str(path)))
    except InputInvalid as error:
        out.problems.extend(error.problems)
        return out
    out.fill(columnar.rows(source, container, str(path), 0, count))
    return out
