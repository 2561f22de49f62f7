"""A file's bytes to its rows, each with the line it starts on. CSV, JSONL, JSON and Parquet.

Nothing here knows what a row means (`formats`) and nothing is bent into shape: what cannot be read is
a problem with `file:line`, and reading goes on so that all of a file's problems show at once.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ftaas_pipelines.errors import InputInvalid, Problem

SHOWN = 20  # problems of one reading that are printed; the rest is counted
_SUFFIXES = {
    ".csv": "CSV",
    ".tsv": "CSV",
    ".jsonl": "JSONL",
    ".ndjson": "JSONL",
    ".json": "JSON",
    ".parquet": "Parquet",
}


class Row(NamedTuple):
    """One raw row. `line` is the line it starts on (Parquet: the row), from 1."""

    line: int
    value: dict[str, Any]


@dataclass
class Rows:
    """What one file holds.

    Attributes:
        container: CSV, JSONL, JSON or Parquet.
        columns: names found, in the order of the file.
        problems: what could not be read.
    """

    path: Path
    container: str
    columns: list[str] = field(default_factory=list[str])
    rows: list[Row] = field(default_factory=list[Row])
    problems: list[Problem] = field(default_factory=list[Problem])

    def fault(self, line: int, what: str, got: str = "", do: str = "") -> None:
        self.problems.append(Problem(what, f"{self.path}:{line}", got, do))


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


def load(path: Path) -> bytes:
    """The bytes of a data file.

    Raises:
        InputInvalid: it is not there, is no file, cannot be opened, or is empty.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputInvalid(
            "the data file is not there", str(path), do="put it there or mend the path"
        ) from None
    except OSError as error:
        raise InputInvalid(
            "cannot be read", str(path), error.strerror or "", "name a readable file"
        ) from None
    if not data.strip():
        raise InputInvalid("the file is empty", f"{path}:1", f"{len(data)} bytes", "put rows into it")
    return data


def read(path: Path, data: bytes, encoding: str = "utf-8") -> Rows:
    """Every row of a file's bytes, and every problem met on the way.

    Raises:
        InputInvalid: nothing of it can be read: wrong encoding, another kind of file than its name says.
    """
    if data.startswith(b"PAR1"):
        out = Rows(path, _agreed(path, "Parquet", ""))
        _parquet(data, out)
    else:
        text = _decode(path, data, encoding)
        out = Rows(path, _agreed(path, _look(text), text))
        {"CSV": _csv, "JSONL": _jsonl, "JSON": _json}[out.container](text, out)
    if not out.rows and not out.problems:
        out.fault(1, "the file holds no rows", f"{out.container} without a row", "put rows into it")
    if not out.columns:
        out.columns = list(dict.fromkeys(name for row in out.rows[:200] for name in row.value))
    return out


def _decode(path: Path, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        raise InputInvalid(
            f"is not {encoding}",
            f"{path}:{line}",
            f"byte 0x{data[error.start]:02x} at offset {error.start}",
            f"save it as UTF-8, or set dataset.encoding (perhaps {'utf-16' if utf16 else 'cp1252'})",
        ) from None


def _look(text: str) -> str:
    return {"[": "JSON", "{": "JSONL"}.get(text.lstrip()[:1], "CSV")


def _agreed(path: Path, look: str, text: str) -> str:
    """The container, where the file's name and its first bytes agree on it."""
    named = _SUFFIXES.get(path.suffix.lower(), look)
    if named == "JSON" and look == "JSONL":
        return "JSONL" if _is_many_objects(text) else "JSON"
    broken_first_line = named in ("JSONL", "JSON") and "\n{" in text
    if named == look or (look == "CSV" and broken_first_line):
        return named
    raise InputInvalid(
        f"looks like {look} and not like {named} as its name says",
        f"{path}:1",
        do="rename it, or save it as what its name says",
    )


def _is_many_objects(text: str) -> bool:
    try:
        json.JSONDecoder().raw_decode(text.lstrip().partition("\n")[0])
    except ValueError:
        return False
    return True


def _csv(text: str, out: Rows) -> None:
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    csv.field_size_limit(2**31 - 1)  # length is for cleaning to judge; the default is 128 KiB
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line, header = 1, list[str]()
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            out.fault(
                line, f"is not CSV: {error}", do='put the text in quotes and double the quotes in it ("")'
            )
        else:
            if not header:
                header = out.columns = [name.strip() for name in cells]
                if twice := sorted({n for n in header if header.count(n) > 1}):
                    out.fault(line, f"the column '{twice[0]}' stands twice", do="rename one")
            elif len(cells) > len(header):
                got = f"{len(cells)} cells for {len(header)} columns"
                out.fault(
                    line, "the row has more cells than the header", got, f"quote text that has '{delimiter}'"
                )
            elif cells:
                out.rows.append(Row(line, dict(zip(header, cells, strict=False))))
        line = reader.line_num + 1


def _jsonl(text: str, out: Rows) -> None:
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would also cut at U+2028
        if line.strip():
            try:
                _keep(json.loads(line), number, out)
            except (ValueError, RecursionError) as error:
                _broken(number, error, out)


def _json(text: str, out: Rows) -> None:
    """One array; its elements are decoded one by one, to know the line of each."""
    decoder = json.JSONDecoder()
    at, line, counted = _skip(text, 0), 1, 0
    try:
        if text[at] != "[":
            json.loads(text)
            out.fault(1, "holds one object where a list of rows is expected", do="write [row, row, …]")
            return
        at = _skip(text, at + 1)
        while text[at : at + 1] != "]" or out.rows:
            line, counted = line + text.count("\n", counted, at), at
            value, at = decoder.raw_decode(text, at)
            _keep(value, line, out)
            at = _skip(text, at)
            if text[at : at + 1] != ",":
                break
            at = _skip(text, at + 1)
        if text[at : at + 1] != "]":
            raise json.JSONDecodeError("expecting ',' or ']'", text, at)
        if end := text[at + 1 :].strip():
            raise json.JSONDecodeError("more after the list's end", text, text.index(end, at + 1))
    except json.JSONDecodeError as error:
        _broken(error.lineno, error, out)
    except (ValueError, RecursionError) as error:
        _broken(line, error, out)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _keep(value: Any, line: int, out: Rows) -> None:
    if isinstance(value, dict):
        out.rows.append(Row(line, value))  # pyright: ignore[reportUnknownArgumentType]
    else:
        out.fault(line, "the row is not an object", shown(value), 'write {"column": "text", …}')


def _broken(line: int, error: Exception, out: Rows) -> None:
    """Say where, not what: a row's text may be what no log should hold."""
    if isinstance(error, json.JSONDecodeError):
        reason = f"{error.msg}, column {error.colno}"
    else:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    out.fault(line, f"broken JSON: {reason}", do="mend or delete the row")


def _parquet(data: bytes, out: Rows) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table: Any = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        out.fault(1, "is not a whole Parquet file", str(error).splitlines()[0][:80], "write it again")
        return
    out.columns = list(table.column_names)
    out.rows = [Row(i, value) for i, value in enumerate(table.to_pylist(), 1)]
