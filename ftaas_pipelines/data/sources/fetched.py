"""What one look at a remote place brought, and rows written as a file that says the same in any order."""

import base64
import contextlib
import heapq
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

from ftaas_pipelines.errors import InputInvalid

_RUN_BYTES = 64 * 2**20
_ROW_OVERHEAD = 40  # bytes a held row costs beside its text


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """Files as they came.

    Attributes:
        token: what tells cheaply that the place has not changed; empty when nothing does.
        rows: how many, where the fetching knows.
        watermark: the greatest value seen of the watermark column.
    """

    files: list[Path]
    token: str = ""
    rows: int | None = None
    watermark: str | int | float | None = None


def write_rows(rows: Iterable[Any], target: Path, earlier: Iterable[Path] = ()) -> int:
    """Write rows as JSONL, sorted by their bytes: a database may answer in another order each time.

    Holds about 64 MiB; more is sorted in runs beside the target and merged.

    Args:
        earlier: files written by this function before, whose rows go in as well.

    Returns:
        The number of rows written, those of `earlier` included.

    Raises:
        InputInvalid: a value has no word in JSON.
    """
    with contextlib.ExitStack() as stack:
        runs: list[IO[bytes]] = [stack.enter_context(path.open("rb")) for path in earlier]
        held: list[bytes] = []
        size = 0
        for line in _lines(rows):
            held.append(line)
            size += len(line) + _ROW_OVERHEAD
            if size > _RUN_BYTES:
                run = stack.enter_context(tempfile.TemporaryFile(dir=target.parent))
                run.writelines(sorted(held))
                run.seek(0)
                runs.append(run)
                held, size = [], 0
        held.sort()
        count = 0
        with target.open("wb") as out:
            for line in heapq.merge(*runs, held):
                out.write(line)
                count += 1
    return count


def plain(value: Any) -> Any:
    """A value as JSON says it where JSON has no word: decimals as exact text, bytes as base64.

    Dates and times (ISO 8601) and UUIDs are known to orjson.

    Raises:
        TypeError: there is no such word.
    """
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if hasattr(value, "isoformat"):  # a time with a zone
        return value.isoformat()
    raise TypeError(f"no JSON for {type(value).__name__}")


def _lines(rows: Iterable[Any]) -> Iterator[bytes]:
    import orjson

    for row in rows:
        try:
            # A copy of its own size: orjson's bytes keep a buffer of kilobytes for as long as they are held.
            yield b"%b\n" % orjson.dumps(row, default=plain)
        except TypeError as error:
            why = str(error.__cause__ or error)
            raise InputInvalid("a row cannot be written as JSON", got=why, do="send text instead") from None
