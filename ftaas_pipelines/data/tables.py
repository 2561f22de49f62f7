"""The tables of a dataset version: columns, buckets, and Parquet whose bytes depend on the rows alone.

A version's rows lie in buckets of the `record_id`'s first characters, so that one new row rewrites one
bucket and the store keeps the others once. Single-threaded, fixed row groups, no embedded Arrow schema
or pandas index: equal rows, equal digest. Imported by stage programs and at reading time: it needs pyarrow.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

GROUP_ROWS = 10_000
_TEXT: Any = pa.string()
_WHOLE: Any = pa.int64()

RECORDS: Any = pa.schema(
    [
        (name, _TEXT)
        for name in (
            "record_id",
            "content_id",
            "kind",
            "prompt",
            "answer",
            "messages",
            "extra",
            "source",
            "declared_split",
            "challenge",
            "group",
            "synthetic",
            "language",
        )
    ]
)
FINDINGS: Any = pa.schema(
    [(n, _TEXT) for n in ("record_id", "detector", "kind", "field")]
    + [("start", _WHOLE), ("end", _WHOLE), ("severity", _TEXT)]
)
DROPPED: Any = pa.schema([(n, _TEXT) for n in ("record_id", "source", "reason")])
PROVENANCE: Any = pa.schema([(n, _TEXT) for n in ("record_id", "source", "sha256")] + [("row", _WHOLE)])
QUARANTINE: Any = pa.schema([("source", _TEXT), ("sha256", _TEXT), ("row", _WHOLE), ("what", _TEXT)])
NEAR: Any = pa.schema([("a", _TEXT), ("b", _TEXT), ("jaccard", pa.float64())])
ANCHORS: Any = pa.schema([("group", _TEXT), ("split", _TEXT)])

# Up to so many records, buckets are named by so many characters of the record_id.
_DIGITS = ((4_096, 0), (262_144, 1))


def prefixes(records: int, most_digits: int = 2) -> list[str]:
    """The buckets of a version of so many records, in order: their record_id's first characters.

    The record table has up to two; tables beside it (findings, dropped, provenance) at most one.
    """
    digits = min(most_digits, next((d for most, d in _DIGITS if records <= most), 2))
    return [f"{i:0{digits}x}" for i in range(16**digits)] if digits else [""]


def bucket(folder: Path, prefix: str) -> Path:
    """The file of one bucket."""
    return folder / f"{prefix or 'all'}.parquet"


def buckets(folder: Path) -> list[Path]:
    """The files of a bucketed table, in order of record_id."""
    return sorted(folder.glob("*.parquet"))


def write(path: Path, table: Any) -> None:
    """Write one Arrow table, in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table.replace_schema_metadata(None),
        path,
        row_group_size=GROUP_ROWS,
        compression="zstd",
        store_schema=False,
    )


def write_rows(path: Path, rows: Sequence[Any], schema: Any) -> None:
    """Write rows (dicts), in the order given."""
    write(path, pa.Table.from_pylist(list(rows), schema=schema))


def writer(path: Path, schema: Any) -> Any:
    """A Parquet writer with the settings of `write`, for a table that is written piece by piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return pq.ParquetWriter(path, schema, compression="zstd", store_schema=False)


def write_pieces(path: Path, pieces: Iterable[Any], schema: Any) -> int:
    """Write tables one after the other, in row groups that do not depend on how they were cut.

    Returns:
        How many rows were written.
    """
    rest: Any = schema.empty_table()
    rows = 0
    with writer(path, schema) as out:
        for piece in pieces:
            rest = pa.concat_tables([rest, piece.replace_schema_metadata(None)])
            whole = len(rest) - len(rest) % GROUP_ROWS
            for at in range(0, whole, GROUP_ROWS):
                out.write_table(rest.slice(at, GROUP_ROWS).combine_chunks(), row_group_size=GROUP_ROWS)
            rows, rest = rows + whole, rest.slice(whole)
        if len(rest) or not rows:
            out.write_table(rest.combine_chunks(), row_group_size=GROUP_ROWS)
    return rows + len(rest)


def pieces(folder: Path, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """A bucketed table, bucket by bucket, in order of record_id."""
    for path in buckets(folder):
        yield pq.read_table(path, columns=list(columns) if columns else None)


def read(folder: Path, columns: Sequence[str] | None = None) -> Any:
    """A bucketed table as one Arrow table, in order of record_id."""
    return pa.concat_tables(list(pieces(folder, columns)))
