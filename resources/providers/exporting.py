"""The training and validation split in a provider's shape, with a manifest of what leaves the house.

The test split is never opened here.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftaas_pipelines.data.versions import view
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.store import Artifact, file_digest, short

SPLITS = ("train", "validation")
Row = dict[str, Any]


@dataclass(frozen=True)
class Export:
    """Files by split, and the manifest that names the splits digest and each file's sha256."""

    files: dict[str, Path]
    manifest: dict[str, Any]

    def sha256(self, split: str) -> str:
        return self.manifest["files"][self.files[split].name]["sha256"]


def lines(splits: Artifact, shape: Callable[[Row], Row], form: str, folder: Path) -> Export:
    """One JSON line a record, in a new folder.

    Args:
        shape: makes a line of a record; raises InputInvalid where it has no such shape.
        form: what the shape is called.
    """
    return _export(splits, form, folder, "jsonl", lambda split, path: _lines(splits, split, shape, path))


def records(splits: Artifact, folder: Path) -> Export:
    """The records as they are (Parquet), for this platform's own program."""

    def copy(split: str, path: Path) -> int:
        import pyarrow.parquet as pq

        (source,) = view.files(splits, split)
        shutil.copyfile(source, path)
        return pq.read_metadata(path).num_rows

    return _export(splits, "records-parquet", folder, "parquet", copy)


def _export(
    splits: Artifact, form: str, folder: Path, suffix: str, write: Callable[[str, Path], int]
) -> Export:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files: dict[str, Path] = {}
    described: dict[str, Any] = {}
    for split in SPLITS:
        path = folder / f"{split}.{suffix}"
        count = write(split, path)
        if not count:
            path.unlink()
            continue
        files[split] = path
        described[path.name] = {
            "split": split,
            "records": count,
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
        }
    if "train" not in files:
        where = f"splits {short(splits.digest)}"
        raise InputInvalid("holds no training records", where, do="see `ftaas data show`")
    return Export(files, {"splits": splits.digest, "format": form, "files": described})


def _lines(splits: Artifact, split: str, shape: Callable[[Row], Row], path: Path) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as out:
        for row in view.stream(splits, split):
            out.write(json.dumps(shape(row), ensure_ascii=False) + "\n")
            count += 1
    return count
