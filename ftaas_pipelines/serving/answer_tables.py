"""Rows of the inference log as Arrow tables and Parquet files. Loads pyarrow: import it where needed."""

import bisect
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from ftaas_pipelines.serving.answer_files import TEXTS, Kind, sync

pc: Any = pyarrow.compute  # its functions are made at run time

_GROUP_ROWS = 8_192  # what is read to find one row
_SEEN = {"rule": pa.string(), "kind": pa.string(), "action": pa.string(), "count": pa.int32()}
SCHEMAS: dict[Kind, Any] = {
    "answered": pa.schema(
        {
            "id": pa.string(),
            "at": pa.float64(),
            "environment": pa.string(),
            "project": pa.string(),
            "release": pa.string(),
            "adapter_digest": pa.string(),
            "base": pa.string(),
            "variant": pa.string(),
            "caller": pa.string(),
            "kind": pa.string(),
            "status": pa.int32(),
            "error": pa.string(),
            "finish_reason": pa.string(),
            "prompt_tokens": pa.int64(),
            "completion_tokens": pa.int64(),
            "cost_usd": pa.float64(),
            "total_ms": pa.float64(),
            "queue_ms": pa.float64(),
            "first_token_ms": pa.float64(),
            "guard": pa.list_(pa.struct({**_SEEN, "where": pa.string()})),
            "shadow_of": pa.string(),
            "unit": pa.string(),
            "prompt": pa.string(),
            "answer": pa.string(),
            "erased_at": pa.float64(),
        }
    ),
    "feedback": pa.schema(
        {
            "id": pa.string(),
            "at": pa.float64(),
            "caller": pa.string(),
            "thumb": pa.string(),
            "correction": pa.string(),
            "comment": pa.string(),
            "project": pa.string(),
            "erased_at": pa.float64(),
        }
    ),
}
_SAME_ROW: dict[Kind, tuple[str, ...]] = {"answered": ("id",), "feedback": ("id", "at", "caller")}
# Texts differ from row to row, and statistics would put the first and last of them into the file's end.
_FEW = ("environment", "project", "release", "adapter_digest", "base", "variant", "caller", "kind", "error")
_BOUNDS = ["id", "at", "caller"]


def table(
    kind: Kind, rows: Sequence[dict[str, Any]], unreadable: Callable[[dict[str, Any]], None] | None = None
) -> Any:
    """Rows as a table; a row that is of another shape is left out, and told."""
    schema = SCHEMAS[kind]
    if not rows:
        return schema.empty_table()
    try:
        return pa.Table.from_pylist(list(rows), schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError, OverflowError):
        if len(rows) == 1:
            if unreadable:
                unreadable(rows[0])
            return schema.empty_table()
    half = len(rows) // 2
    return pa.concat_tables([table(kind, part, unreadable) for part in (rows[:half], rows[half:])])


def merged(kind: Kind, tables: Sequence[Any]) -> Any:
    """One table, sorted by id, of every row once."""
    names = _SAME_ROW[kind]
    whole = pa.concat_tables(tables).sort_by([(name, "ascending") for name in names])
    if whole.num_rows < 2:
        return whole
    same: Any = None
    for name in names:
        column = whole[name].combine_chunks()
        equal = pc.equal(column[1:], column[:-1])
        same = equal if same is None else pc.and_(same, equal)
    first = pa.concat_arrays([pa.array([True]), pc.invert(pc.fill_null(same, False))])
    return whole.filter(first)


def write(content: Any, path: Path) -> None:
    """Write a finished Parquet file that outlives a power cut; the content is sorted by id.

    Raises:
        OSError: the disk is full, say. The half file is gone.
    """
    options: dict[str, Any] = {
        "row_group_size": _GROUP_ROWS,
        "compression": "zstd",
        "use_dictionary": [name for name in _FEW if name in content.column_names],
        "write_statistics": [name for name in _BOUNDS if name in content.column_names],
    }
    try:
        with open(path, "wb", opener=lambda p, flags: os.open(p, flags, 0o600)) as out:
            pq.write_table(content, out, **options)
        sync(path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def read(kind: Kind, source: Any, columns: Sequence[str] | None = None) -> Any:
    """A whole file as a table of today's shape: columns that it lacks are null."""
    none = SCHEMAS[kind].empty_table().select(columns or SCHEMAS[kind].names)
    return pa.concat_tables([none, *groups(kind, source, columns)])


def groups(kind: Kind, source: Any, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """A file group by group, so that a day of any size is read in little memory."""
    with pq.ParquetFile(source) as file:
        for number in range(file.num_row_groups):
            yield _shaped(kind, file, number, columns)


def with_id(kind: Kind, source: Any, id: str) -> list[dict[str, Any]]:
    """The rows of an id in one file. Reads the ends of the file, and a group's ids where they may be."""
    found: list[dict[str, Any]] = []
    with pq.ParquetFile(source) as file:
        for number in range(file.num_row_groups):
            bounds = file.metadata.row_group(number).column(0).statistics
            if bounds is not None and bounds.has_min_max and not bounds.min <= id <= bounds.max:
                continue
            # Comparing within Arrow would have it load pandas, which is not for the gateway.
            ids = file.read_row_group(number, ["id"], use_threads=False)["id"].to_pylist()
            first, last = bisect.bisect_left(ids, id), bisect.bisect_right(ids, id)
            if first < last:
                found += _shaped(kind, file, number, None).slice(first, last - first).to_pylist()
    return found


def may_hold(source: Any, column: str, values: Sequence[str]) -> bool:
    """Whether a file's bounds leave room for one of the values."""
    with pq.ParquetFile(source) as file:
        place = file.schema_arrow.get_field_index(column)
        for number in range(file.num_row_groups):
            bounds = file.metadata.row_group(number).column(place).statistics
            if bounds is None or not bounds.has_min_max or any(bounds.min <= v <= bounds.max for v in values):
                return True
    return False


def without_texts(kind: Kind, content: Any, mask: Any, at: float) -> Any:
    """The rows of the mask lose their texts, and say since when."""
    for name, value in (*((text, None) for text in TEXTS[kind]), ("erased_at", at)):
        place = content.column_names.index(name)
        column = content[name]
        empty = pa.scalar(value, column.type)
        content = content.set_column(place, name, pc.if_else(mask, empty, column))
    return content


def has_texts(kind: Kind, content: Any) -> Any:
    """A mask: the rows in which some text is not empty."""
    mask: Any = None
    for name in TEXTS[kind]:
        some = pc.greater(pc.fill_null(pc.binary_length(content[name]), 0), 0)
        mask = some if mask is None else pc.or_(mask, some)
    return mask


def _shaped(kind: Kind, file: Any, number: int, columns: Sequence[str] | None) -> Any:
    schema = SCHEMAS[kind]
    wanted = list(columns or schema.names)
    here = set(file.schema_arrow.names)
    content = file.read_row_group(number, [name for name in wanted if name in here], use_threads=False)
    count = file.metadata.row_group(number).num_rows
    arrays = [
        content[name].cast(schema.field(name).type)
        if name in here
        else pa.nulls(count, schema.field(name).type)
        for name in wanted
    ]
    return pa.table(arrays, schema=pa.schema([schema.field(name) for name in wanted]))
