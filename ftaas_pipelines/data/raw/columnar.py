"""Rows of Parquet and Arrow files (IPC file and stream, Feather), by row groups and record batches."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ftaas_pipelines.data.raw.pieces import LIMIT, Row, check_names, too_long
from ftaas_pipelines.errors import InputInvalid, Problem

BATCH_ROWS, BATCH_BYTES = 1024, 4 * 2**20  # turned into Python values at a time


class Part(NamedTuple):
    """A row group or record batch: how many rows, and their bytes uncompressed."""

    rows: int
    bytes: int

    def step(self, most_rows: int, most_bytes: int) -> int:
        """How many of its rows to take at a time, for at most so many rows or about so many bytes."""
        return max(1, min(most_rows, most_bytes * self.rows // max(1, self.bytes)))


def columns(source: Path | bytes, container: str, shown: str) -> tuple[str, ...]:
    """The names of the columns.

    Raises:
        InputInvalid: the file is torn, or a name stands twice.
    """
    with _whole(container, shown):
        schema = _parquet(source).schema_arrow if container == "Parquet" else _arrow(source).schema
        names = tuple(schema.names)
    check_names(names, f"{shown}:1")
    return names


def parts(source: Path | bytes, container: str, shown: str) -> list[Part]:
    """The pieces the file is stored in.

    Raises:
        InputInvalid: the file is torn.
    """
    with _whole(container, shown):
        if container == "Parquet":
            meta = _parquet(source).metadata
            groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
            return [Part(group.num_rows, group.total_byte_size) for group in groups]
        return [Part(batch.num_rows, batch.nbytes) for batch in _record_batches(source)]


def rows(
    source: Path | bytes, container: str, shown: str, start: int, end: int | None
) -> Iterator[Row | Problem]:
    """Rows `start` (from 0) up to `end`, each with its number from 1.

    Raises:
        InputInvalid: a page of the file is damaged.
    """
    at = 0
    stored = (_groups if container == "Parquet" else _batches)(source, start)
    while end is None or at < end:
        with _whole(container, shown):
            first, batch = next(stored, (at, None))
        if batch is None:
            return
        skipped = min(max(start - first, 0), batch.num_rows)
        batch = batch.slice(skipped, None if end is None else max(end - first - skipped, 0))
        for at, value in enumerate(_values(batch), first + skipped + 1):
            yield too_long(f"{shown}:{at}") if value is None else Row(at, value)
        at = first + skipped + batch.num_rows


def _values(batch: Any) -> Iterator[dict[str, Any] | None]:
    """The rows as dictionaries; None for one that is longer than a row may be."""
    if batch.nbytes <= LIMIT:
        yield from batch.to_pylist()
        return
    for i in range(batch.num_rows):
        row = batch.slice(i, 1)
        yield row.to_pylist()[0] if row.nbytes <= LIMIT else None


def _groups(source: Path | bytes, start: int) -> Iterator[tuple[int, Any]]:
    """Batches of a Parquet file, each after the number of its first row, from the row group of `start` on."""
    file, first = _parquet(source), 0
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        at, first = first, first + group.num_rows
        if first > start:
            step = Part(group.num_rows, group.total_byte_size).step(BATCH_ROWS, BATCH_BYTES)
            for batch in file.iter_batches(step, row_groups=[number]):
                yield at, batch
                at += batch.num_rows


def _batches(source: Path | bytes, start: int) -> Iterator[tuple[int, Any]]:
    first = 0
    for batch in _record_batches(source):
        step = Part(batch.num_rows, batch.nbytes).step(BATCH_ROWS, BATCH_BYTES)
        for offset in range(0, batch.num_rows, step):
            if first + offset + step > start:
                yield first + offset, batch.slice(offset, step)
        first += batch.num_rows


def _record_batches(source: Path | bytes) -> Iterator[Any]:
    reader = _arrow(source)
    if hasattr(reader, "num_record_batches"):
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        yield from reader


def _parquet(source: Path | bytes) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.BufferReader(source) if isinstance(source, bytes) else source, memory_map=True)


def _arrow(source: Path | bytes) -> Any:
    """A reader of an IPC file, or of an IPC stream (what Hugging Face saves)."""
    import pyarrow as pa

    file = pa.BufferReader(source) if isinstance(source, bytes) else pa.memory_map(str(source))
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    return pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)


@contextlib.contextmanager
def _whole(container: str, shown: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        got = str(error).splitlines()[0][:80]
        raise InputInvalid(f"is not a whole {container} file", f"{shown}:1", got, "write it again") from None
