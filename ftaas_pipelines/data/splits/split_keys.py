"""What placing reads: the keys of a dataset version, and where the splits it grew from have them.

Keys are read bucket by bucket and held as raw bytes, about 150 bytes a record. Imported by stage
programs only: it needs pyarrow.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ftaas_pipelines.data import tables
from ftaas_pipelines.data.splits.placement import CHALLENGE, NONE, Before, Keys
from ftaas_pipelines.data.splits.rules import SPLITS, same_freeze
from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.projects.dataset import Splits
from ftaas_pipelines.store import Artifact, short

_KEY = "S32"  # a sha256 as raw bytes
_NAMED = 3  # record ids in an error
_PLACE = {name: number for number, name in enumerate((*SPLITS, "challenge"))}


@dataclass(frozen=True)
class Gone:
    """Anchors of groups that this version no longer holds.

    Attributes:
        groups: [m] S32.
        splits: [m] int8, places in `SPLITS`.
    """

    groups: Any
    splits: Any


def read_keys(dataset: Path, options: Splits) -> Keys:
    """The keys of a dataset version's records, and its near-duplicates."""
    folder = dataset / "records"
    n = sum(pq.read_metadata(path).num_rows for path in tables.buckets(folder))
    record_ids, group_of = np.empty(n, _KEY), np.empty(n, _KEY)
    declared, synthetic = np.empty(n, np.int8), np.empty(n, bool)
    strata = np.empty(n, np.uint64) if options.stratify_by else None
    columns = ["record_id", "group", "declared_split", "synthetic"]
    at = 0
    for piece in tables.pieces(folder, [*columns, *filter(None, [options.stratify_by])]):
        here = slice(at, at + len(piece))
        record_ids[here], group_of[here] = _raw(piece["record_id"]), _raw(piece["group"])
        declared[here] = _numbers(piece["declared_split"])
        synthetic[here] = piece["synthetic"].is_valid().to_numpy()
        if strata is not None:
            strata[here] = _hashes(piece[options.stratify_by])
        at += len(piece)
    group_keys, groups = np.unique(group_of, return_inverse=True)
    edges = _edges(dataset / "near.parquet", record_ids)
    return Keys(record_ids, group_keys, groups, declared, synthetic, edges, strata)


def _raw(column: Any) -> Any:
    """[n] S32: hex digests as raw bytes."""
    return np.frombuffer(bytes.fromhex("".join(column.to_pylist())), _KEY)


def _numbers(column: Any) -> Any:
    """[n] int8: the place of each split in `SPLITS`, CHALLENGE, or NONE where none is named."""
    return np.array([_PLACE.get(name, NONE) for name in column.to_pylist()], np.int8)


def _hashes(column: Any) -> Any:
    """[n] uint64: what a value hashes to, the same in every version."""
    codes = column.combine_chunks().dictionary_encode()
    of_value = [hashlib.sha256(v.encode()).digest()[:8] for v in codes.dictionary.to_pylist()]
    return np.frombuffer(b"".join(of_value), ">u8").astype(np.uint64)[codes.indices.to_numpy()]


def _edges(path: Path, record_ids: Any) -> Any:
    """[e, 2] places of the near-duplicate pairs in `record_ids`."""
    if not path.is_file():
        return np.empty((0, 2), np.int64)
    table = pq.read_table(path, columns=["a", "b"])
    keys = [_raw(table[name]) for name in ("a", "b")]
    ends = [_places(record_ids, key) for key in keys]
    if any((end == NONE).any() for end in ends):
        raise FtaasError("near.parquet names a record that the dataset does not hold", str(path))
    return np.stack(ends, axis=1)


def _places(ascending: Any, wanted: Any) -> Any:
    """[n] where each wanted key stands among ascending ones; NONE where it is not there."""
    if not len(ascending):
        return np.full(len(wanted), NONE)
    at = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return np.where(ascending[at] == wanted, at, NONE)


def read_before(anchors: Artifact | None, keys: Keys, options: Splits) -> tuple[Before, Gone]:
    """Where the earlier splits have groups and records, and their anchors of groups that are gone."""
    groups = np.full(len(keys.group_keys), NONE, np.int8)
    records = np.full(len(keys.record_ids), NONE, np.int8)
    lost: list[Any] = [np.empty(0, _KEY)]
    lost_splits: list[Any] = [np.empty(0, np.int8)]
    if anchors is not None:
        for batch in _batches(anchors.file("anchors.parquet"), "group", "split"):
            group, split = _raw(batch["group"]), _numbers(batch["split"])
            at = _places(keys.group_keys, group)
            groups[at[at != NONE]] = split[at != NONE]
            lost.append(group[at == NONE])
            lost_splits.append(split[at == NONE])
        for number, name in enumerate(SPLITS):
            for batch in _batches(anchors.file(f"{name}.parquet"), "record_id"):
                at = _places(keys.record_ids, _raw(batch["record_id"]))
                at = at[at != NONE]
                records[at[keys.declared[at] != CHALLENGE]] = number
    frozen = anchors is not None and same_freeze(anchors.content["options"], options)
    gone = Gone(np.concatenate(lost), np.concatenate(lost_splits))
    return Before(groups, records, frozen), gone


def _batches(path: Path, *columns: str) -> Iterator[Any]:
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(tables.GROUP_ROWS, columns=list(columns))


def check_frozen(anchors: Artifact, dataset: Artifact, keys: Keys, options: Splits) -> None:
    """Every frozen record is there, as it was and in its group.

    Raises:
        InputInvalid: one is not.
    """
    frozen = pq.read_table(anchors.file("test.parquet"), columns=["record_id", "content_id", "group"])
    ids = _raw(frozen["record_id"])
    at = _places(keys.record_ids, ids)
    there = (at != NONE) & (keys.declared[at] != CHALLENGE)
    same = there & (keys.group_keys[keys.groups[at]] == _raw(frozen["group"]))
    contents, start = _raw(frozen["content_id"]), 0
    for piece in tables.pieces(dataset.path / "records", ["content_id"]):
        here = np.flatnonzero(there & (at >= start) & (at < start + len(piece)))
        same[here] &= _raw(piece["content_id"])[at[here] - start] == contents[here]
        start += len(piece)
    if same.all():
        return
    gone, changed = int((~there).sum()), int((there & ~same).sum())
    first = ", ".join(short(i) for i in frozen["record_id"].filter(pa.array(~same))[:_NAMED].to_pylist())
    raise InputInvalid(
        f"the frozen test split '{options.freeze}' changed",
        "dataset.splits.freeze",
        f"{gone} of its {len(ids)} records gone, {changed} changed; first {first}",
        "set splits.freeze to a new name: the comparison with the champion starts again there",
    )
