"""Parquet whose bytes depend on the rows alone, and the columns of every table that `prepare` writes.

Single-threaded, fixed row groups, no embedded Arrow schema or pandas index: equal rows, equal digest.
Imported by stage programs and at reading time only: it needs pyarrow.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ftaas_pipelines.data.dataset import Dropped, Origin
from ftaas_pipelines.data.findings import Finding
from ftaas_pipelines.data.records import Record

PART_ROWS = 20_000  # records in one file of `records/`
_GROUP_ROWS = 10_000
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
            "source",
            "declared_split",
            "challenge",
            "group",
        )
    ]
)
FINDINGS: Any = pa.schema(
    [(n, _TEXT) for n in ("record_id", "detector", "kind", "field")]
    + [("start", _WHOLE), ("end", _WHOLE), ("severity", _TEXT)]
)
DROPPED: Any = pa.schema([(n, _TEXT) for n in ("record_id", "source", "reason")])
PROVENANCE: Any = pa.schema([(n, _TEXT) for n in ("record_id", "source", "sha256")] + [("row", _WHOLE)])
ANCHORS: Any = pa.schema([("group", _TEXT), ("split", _TEXT)])


@dataclass(frozen=True)
class Row:
    """One row of the record table; the fields are its columns."""

    record_id: str
    content_id: str
    kind: str
    prompt: str
    answer: str
    messages: str
    source: str
    declared_split: str | None
    challenge: str | None
    group: str


def row(record: Record) -> Row:
    """The row of a record."""
    return Row(
        record_id=record.record_id,
        content_id=record.content_id,
        kind=record.kind,
        prompt=record.prompt,
        answer=record.answer,
        messages=json.dumps(record.messages, ensure_ascii=False),
        source=record.source,
        declared_split=record.declared_split,
        challenge=record.source if record.declared_split == "challenge" else None,
        group=record.group,
    )


def write(path: Path, rows: Sequence[Row | Finding | Dropped | Origin], schema: Any) -> None:
    """Write dataclass rows, in the order given."""
    write_table(path, pa.Table.from_pylist([asdict(r) for r in rows], schema=schema))


def write_table(path: Path, table: Any) -> None:
    """Write one Arrow table, in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table.replace_schema_metadata(None),
        path,
        row_group_size=_GROUP_ROWS,
        compression="zstd",
        store_schema=False,
    )


def write_records(folder: Path, rows: Sequence[Row]) -> None:
    """`records/part-00.parquet` and on, sorted by `record_id`."""
    for i in range(0, max(1, len(rows)), PART_ROWS):
        write(folder / "records" / f"part-{i // PART_ROWS:02d}.parquet", rows[i : i + PART_ROWS], RECORDS)


def read_records(folder: Path) -> Any:
    """The record table of a dataset version, as one Arrow table sorted by `record_id`."""
    parts = sorted((folder / "records").glob("part-*.parquet"), key=lambda p: int(p.stem.partition("-")[2]))
    return pa.concat_tables([pq.read_table(part, schema=RECORDS) for part in parts])


def write_anchors(path: Path, split_of: Mapping[str, str]) -> None:
    """Each group and its split, sorted by group."""
    rows = [{"group": group, "split": split} for group, split in sorted(split_of.items())]
    write_table(path, pa.Table.from_pylist(rows, schema=ANCHORS))


def pick(table: Any, rows: Sequence[int]) -> Any:
    """The table's rows of these numbers, in this order; none of them is fine too."""
    return table.take(pa.array(rows, type=_WHOLE))
