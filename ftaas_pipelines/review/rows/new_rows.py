"""What is new in a dataset version since the last closed row review: rows that came, changed or went.

Compared bucket by bucket in Arrow columns, as `data.versions.diff` does; a bucket that both versions
share is not read. A row that reviewers corrected or rejected themselves is no news.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from ftaas_pipelines.data.inputs import Verdict
from ftaas_pipelines.data.versions import view
from ftaas_pipelines.store import Artifact

pc: Any = pyarrow.compute  # its functions are made at run time
OLD, CAME, CHANGED = 0, 1, 2
_COLUMNS = ["record_id", "content_id"]


@dataclass(frozen=True)
class NewRows:
    """What is new.

    Attributes:
        marks: [records] uint8 in order of record_id: OLD, CAME or CHANGED.
        gone: how many rows of the older version are not in the newer.
        gone_because: those, by the reason for which the newer version dropped them.
    """

    marks: Any
    gone: int
    gone_because: dict[str, int]

    @property
    def came(self) -> int:
        return int((self.marks == CAME).sum())

    @property
    def changed(self) -> int:
        return int((self.marks == CHANGED).sum())

    @property
    def total(self) -> int:
        """Rows that came, changed or went."""
        return self.came + self.changed + self.gone


def compare(dataset: Artifact, before: Artifact | None, verdicts: Sequence[Verdict]) -> NewRows:
    """Compare a dataset version with the one of the last closed row review.

    Args:
        before: that version; None: there was none, and every row without a verdict is new.
        verdicts: those that hold; a row on whose content one was given, or that is what a correction
            made of it, is old.
    """
    judged = pa.array(sorted({v.record_id for v in verdicts}), pa.string())
    rejected = pa.array(sorted({v.record_id for v in verdicts if v.word == "reject"}), pa.string())
    marks, at = list[Any](), 0
    gone: Counter[str] = Counter()
    asked_before: list[tuple[int, str, str]] = []
    for prefix in _prefixes(dataset, before):
        if before is not None and (rows := _shared(dataset, before, prefix)) is not None:
            marks.append(np.zeros(rows, np.uint8))
            at += rows
            continue
        new = view.columns(dataset, _COLUMNS, prefix).combine_chunks()
        old = view.columns(before, _COLUMNS, prefix).combine_chunks() if before else new.slice(0, 0)
        here = _marks(new, old)
        known = np.asarray(pc.is_in(new["record_id"], value_set=judged)) & (here != OLD)
        for row in np.flatnonzero(known).tolist():
            asked_before.append((at + row, new["record_id"][row].as_py(), new["content_id"][row].as_py()))
        marks.append(here)
        at += len(here)
        missing = pc.invert(pc.is_in(old["record_id"], value_set=_ids(new)))
        went = old["record_id"].filter(missing)
        went = went.filter(pc.invert(pc.is_in(went, value_set=rejected)))
        gone.update(_because(dataset, prefix, went))
    found = np.concatenate(marks) if marks else np.zeros(0, np.uint8)
    found[_settled(dataset, asked_before, verdicts)] = OLD
    return NewRows(found, gone.total(), dict(sorted(gone.items())))


def _marks(new: Any, old: Any) -> Any:
    place = pc.index_in(new["record_id"], value_set=_ids(old))
    same = pc.fill_null(pc.equal(new["content_id"], old["content_id"].take(place)), False)
    found = np.where(np.asarray(pc.is_null(place)), CAME, CHANGED).astype(np.uint8)
    found[np.asarray(same)] = OLD
    return found


def _ids(table: Any) -> Any:
    return pa.concat_arrays(table["record_id"].chunks) if len(table) else pa.array([], pa.string())


def _prefixes(dataset: Artifact, before: Artifact | None) -> list[str]:
    """The finer of the two versions' buckets: each lies inside one bucket of the other."""
    finer = max((a for a in (dataset, before) if a), key=lambda a: len(view.files(a)))
    return ["" if path.stem == "all" else path.stem for path in view.files(finer)]


def _shared(dataset: Artifact, before: Artifact, prefix: str) -> int | None:
    """How many rows a bucket has that both versions share; None: they do not."""
    name = f"records/{prefix or 'all'}.parquet"
    ours, theirs = (a.manifest["files"].get(name) for a in (dataset, before))
    return pq.read_metadata(dataset.file(name)).num_rows if ours and ours == theirs else None


def _because(dataset: Artifact, prefix: str, went: Any) -> dict[str, int]:
    """Rows that went, by reason; of several copies' reasons the first by name."""
    if not len(went):
        return {}
    dropped = view.columns(dataset, ["record_id", "reason"], prefix, table="dropped")
    dropped = dropped.filter(pc.is_in(dropped["record_id"], value_set=pa.concat_arrays(went.chunks)))
    first = dropped.group_by("record_id").aggregate([("reason", "min")])
    reasons = Counter[str](first["reason_min"].to_pylist())
    reasons["not_in_source"] = len(went) - len(first)
    return +reasons


def _settled(
    dataset: Artifact, asked_before: list[tuple[int, str, str]], verdicts: Sequence[Verdict]
) -> list[int]:
    """The places of rows that a verdict speaks of as they are now."""
    spoken = {(v.record_id, v.content_id) for v in verdicts}
    texts: dict[str, set[str]] = {}
    for v in verdicts:
        if v.word == "fix":
            texts.setdefault(v.record_id, set()).add(v.text)
    unclear = [i for _, i, content in asked_before if (i, content) not in spoken and i in texts]
    rows = view.by_id(dataset, unclear)
    corrected = {i for i, row in rows.items() if row["messages"][-1]["content"] in texts[i]}
    return [at for at, i, content in asked_before if (i, content) in spoken or i in corrected]
