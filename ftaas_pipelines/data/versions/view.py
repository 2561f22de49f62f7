"""Reading rows of a dataset version or its splits, for people. pyarrow is imported at the first row."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ftaas_pipelines.data.rows.messages import of_row
from ftaas_pipelines.data.splits.rules import SPLITS
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.store import Artifact, short

_JSON = ("extra", "synthetic")  # columns that hold JSON, or null
BATCH_ROWS = 1_000


def rows(
    artifact: Artifact,
    split: str | None = None,
    limit: int = 20,
    *,
    kind: str | None = None,
    source: str | None = None,
    record: str | None = None,
) -> list[dict[str, Any]]:
    """The first records, by `record_id`; `messages`, `extra` and `synthetic` as values, not as JSON.

    Args:
        artifact: a `dataset` or `splits`.
        split: of splits: train (the default), validation, test or `challenge_<name>`;
            of a dataset: only records that declare it.
        limit: at most so many.
        kind: only records of this kind (text_pair, conversation, preference, labelled, prompt, text).
        source: only records of this source.
        record: only records whose id begins so.

    Raises:
        InputInvalid: the artifact holds no rows, or not this split.
    """
    import pyarrow.dataset as ds

    wanted = {"kind": kind, "source": source}
    if artifact.kind == "dataset":
        wanted["declared_split"] = split
    conditions = [ds.field(name) == value for name, value in wanted.items() if value is not None]
    paths = files(artifact, split)
    if record is not None:
        conditions.append(begins(record))
        paths = [path for path in paths if _may_hold(artifact, path, record)]
    whole: Any = None
    for condition in conditions:
        whole = condition if whole is None else whole & condition
    return [value(row) for row in _scan(paths, whole).head(limit).to_pylist()]


def stream(artifact: Artifact, split: str | None = None) -> Iterator[dict[str, Any]]:
    """Every record of a dataset version or of one split, by `record_id`, in bounded memory."""
    for batch in _scan(files(artifact, split), None).to_batches():
        for row in batch.to_pylist():
            yield value(row)


def by_id(artifact: Artifact, record_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """These records of a dataset version, by `record_id`; only their buckets are read."""
    import pyarrow.dataset as ds

    ids = sorted(set(record_ids))
    if not ids:
        return {}
    paths = [p for p in files(artifact) if any(_may_hold(artifact, p, i) for i in ids)]
    found = _scan(paths, ds.field("record_id").isin(ids)).to_table().to_pylist()
    return {row["record_id"]: value(row) for row in found}


def columns(artifact: Artifact, names: list[str], prefix: str = "", table: str = "records") -> Any:
    """Columns of a bucketed table of a dataset version (Arrow), of the ids that begin so."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    paths = [p for p in sorted(artifact.file(table).glob("*.parquet")) if _may_hold(artifact, p, prefix)]
    if not paths:
        return pa.table({name: [] for name in names})
    source: Any = ds.dataset([str(path) for path in paths], format="parquet")
    return source.to_table(columns=names, filter=begins(prefix), use_threads=False)


def origins(artifact: Artifact, record_ids: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Where these records of a dataset version came from: every row that said the same.

    Returns:
        By record_id: source, sha256 of the file and row number, of each.
    """
    import pyarrow.dataset as ds

    from ftaas_pipelines.data.tables import PROVENANCE

    ids = sorted(set(record_ids))
    folder = artifact.file("beside/provenance")
    paths = [p for p in sorted(folder.glob("*.parquet")) if any(_may_hold(artifact, p, i) for i in ids)]
    found: dict[str, list[dict[str, Any]]] = {}
    if not paths:
        return found
    rows: Any = ds.dataset([str(path) for path in paths], schema=PROVENANCE, format="parquet")
    for row in rows.to_table(filter=ds.field("record_id").isin(ids)).to_pylist():
        found.setdefault(row.pop("record_id"), []).append(row)
    return found


def quarantined(artifact: Artifact, limit: int = 20) -> list[dict[str, Any]]:
    """The first rows that could not be read: source, sha256 of the file, row number, what is wrong."""
    import pyarrow.parquet as pq

    path = artifact.file("beside/quarantine.parquet")
    if not path.is_file():
        return []
    batches: Any = pq.ParquetFile(path).iter_batches(batch_size=limit)
    return next((batch.to_pylist() for batch in batches), [])


def counts(artifact: Artifact) -> dict[str, int]:
    """Records by source (a dataset) or by split (splits: train, validation, test, then challenges)."""
    if artifact.kind == "dataset":
        return dict(artifact.content["by_source"])
    found: dict[str, int] = artifact.content["counts"]
    return {name: found[name] for name in [*SPLITS, *sorted(set(found) - set(SPLITS))]}


def files(artifact: Artifact, split: str | None = None) -> list[Path]:
    """The Parquet files of a dataset version, or of one split, in order of `record_id`.

    Raises:
        InputInvalid: the artifact holds no rows, or not this split.
    """
    if artifact.kind == "dataset":
        return sorted(artifact.file("records").glob("*.parquet"))
    if artifact.kind != "splits":
        raise InputInvalid(
            "holds no rows",
            f"{artifact.kind} {short(artifact.digest)}",
            do="name the digest of a dataset or of splits",
        )
    path = artifact.file(f"{split or 'train'}.parquet")
    if not path.is_file():
        known = ", ".join(counts(artifact))
        raise InputInvalid(
            "there is no such split", f"splits {short(artifact.digest)}", str(split), f"known: {known}"
        )
    return [path]


def begins(prefix: str) -> Any:
    """A condition: `record_id` begins so. Row groups that cannot hold one are not read."""
    import pyarrow.dataset as ds

    field = ds.field("record_id")
    return (field >= prefix) & (field < prefix + "g")  # "g" stands behind every hexadecimal digit


def value(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a record table with its JSON columns read."""
    read = {name: json.loads(row[name]) for name in _JSON if row.get(name) is not None}
    return row | read | ({"messages": of_row(row)} if "messages" in row else {})


def _may_hold(artifact: Artifact, path: Path, record: str) -> bool:
    """Whether this file can hold records whose id begins so: a bucket is named by its ids' beginning."""
    if artifact.kind != "dataset" or path.stem == "all":
        return True
    return path.stem.startswith(record) or record.startswith(path.stem)


def _scan(paths: list[Path], condition: Any) -> Any:
    import pyarrow.dataset as ds

    from ftaas_pipelines.data.tables import RECORDS

    source: Any = ds.dataset([str(path) for path in paths], schema=RECORDS, format="parquet")
    return source.scanner(
        filter=condition,
        batch_size=BATCH_ROWS,
        batch_readahead=1,
        fragment_readahead=1,
        use_threads=False,
    )
