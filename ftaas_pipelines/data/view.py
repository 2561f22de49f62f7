"""Reading rows of a dataset version or its splits, for people. pyarrow is imported at the first row."""

import json
from pathlib import Path
from typing import Any

from ftaas_pipelines.data.splits import SPLITS
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.store import Artifact, short


def rows(artifact: Artifact, split: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
    """The first records, by `record_id`, with `messages` as a list.

    Args:
        artifact: a `dataset` or `splits`.
        split: of splits: train (the default), validation, test or `challenge_<name>`;
            of a dataset: only records that declare it.
        limit: at most so many.

    Raises:
        InputInvalid: the artifact holds no rows, or not this split.
    """
    import pyarrow.parquet as pq

    found: list[dict[str, Any]] = []
    for path in _files(artifact, split):
        source: Any = pq.ParquetFile(path)
        for batch in source.iter_batches(batch_size=1_000):
            for row in batch.to_pylist():
                if artifact.kind == "dataset" and split not in (None, row["declared_split"]):
                    continue
                if len(found) == limit:
                    return found
                found.append({**row, "messages": json.loads(row["messages"])})
    return found


def counts(artifact: Artifact) -> dict[str, int]:
    """Records by source (a dataset) or by split (splits: train, validation, test, then challenges)."""
    if artifact.kind == "dataset":
        return dict(artifact.content["by_source"])
    found: dict[str, int] = artifact.content["counts"]
    return {name: found[name] for name in [*SPLITS, *sorted(set(found) - set(SPLITS))]}


def _files(artifact: Artifact, split: str | None) -> list[Path]:
    if artifact.kind == "dataset":
        return sorted(artifact.file("records").glob("part-*.parquet"))
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
