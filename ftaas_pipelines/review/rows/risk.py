"""Which rows are worth a look first: those with findings, near-duplicates of the test split, odd lengths."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from ftaas_pipelines.data import tables
from ftaas_pipelines.data.versions import view
from ftaas_pipelines.store import Artifact

pc: Any = pyarrow.compute  # its functions are made at run time
# Scores add up; a serious finding goes before everything else together.
_SEVERITY = {"low": 1, "medium": 4, "high": 16}
_NEAR_TEST, _OUTLIER = 8, 2
_ODD = 3.5  # robust z-score beyond which a length is an outlier (Iglewicz and Hoaglin 1993)
_TWICE = 0.693  # and never a length less than twice, or more than half, the usual
_FEW = 20  # rows of a source below which no length is odd


@dataclass(frozen=True)
class Risks:
    """How risky each row is.

    Attributes:
        score: [records] uint8 in order of record_id; 0: nothing speaks against it.
        severity: [records] uint8, of the worst finding.
        odd: [records] int8: 1 much longer, -1 much shorter than other rows of its source.
        near_test: the record_ids that nearly repeat a row of the test split.
    """

    score: Any
    severity: Any
    odd: Any
    near_test: frozenset[str]

    def why(self, place: int, record_id: str) -> list[str]:
        """In words, for whoever looks at the row."""
        worst = {weight: name for name, weight in _SEVERITY.items()}.get(int(self.severity[place]))
        length = {1: "much longer than others", -1: "much shorter than others"}.get(int(self.odd[place]))
        near = "nearly repeats a row of the test split" if record_id in self.near_test else None
        return [w for w in (f"a finding of {worst} severity" if worst else None, near, length) if w]


def risks(dataset: Artifact, splits: Artifact | None) -> Risks:
    """Look at every row, bucket by bucket.

    Args:
        splits: tells which rows are in test, beside those whose source says so.
    """
    near = _near_test(dataset, splits)
    severity, near_marks, source, lengths = list[Any](), list[Any](), list[Any](), list[Any]()
    sources = pa.array(sorted(dataset.content["by_source"]), pa.string())
    for path in tables.buckets(dataset.file("records")):
        piece = pq.read_table(path, columns=["record_id", "source", "prompt", "answer"])
        prefix = "" if path.stem == "all" else path.stem
        severity.append(_severity(dataset, prefix, piece["record_id"]))
        near_marks.append(np.asarray(pc.is_in(piece["record_id"], value_set=near)))
        source.append(np.asarray(pc.index_in(piece["source"], value_set=sources)))
        characters = pc.add(pc.utf8_length(piece["prompt"]), pc.utf8_length(piece["answer"]))
        lengths.append(np.asarray(characters).astype(np.float64))
    worst, odd = np.concatenate(severity), _odd(np.concatenate(lengths), np.concatenate(source))
    score = worst + np.concatenate(near_marks) * np.uint8(_NEAR_TEST) + (odd != 0) * np.uint8(_OUTLIER)
    return Risks(score.astype(np.uint8), worst, odd, frozenset(near.to_pylist()))


def _severity(dataset: Artifact, prefix: str, ids: Any) -> Any:
    """The weight of each row's worst finding."""
    found = np.zeros(len(ids), np.uint8)
    seen = view.columns(dataset, ["record_id", "severity"], prefix, table="findings")
    for name, weight in _SEVERITY.items():  # the worst comes last
        mine = seen["record_id"].filter(pc.equal(seen["severity"], name))
        if len(mine):
            found[np.asarray(pc.is_in(ids, value_set=pc.unique(mine)))] = weight
    return found


def _near_test(dataset: Artifact, splits: Artifact | None) -> Any:
    """The record_ids outside test of which near.parquet names a neighbour inside (Arrow)."""
    pairs = pq.read_table(dataset.file("near.parquet"), columns=["a", "b"])
    if not len(pairs):
        return pa.array([], pa.string())
    test = [
        piece["record_id"].filter(pc.fill_null(pc.equal(piece["declared_split"], "test"), False))
        for piece in tables.pieces(dataset.file("records"), ["record_id", "declared_split"])
    ]
    if splits is not None:
        test.append(pq.read_table(splits.file("test.parquet"), columns=["record_id"])["record_id"])
    inside = pa.concat_arrays([chunk for column in test for chunk in column.chunks])
    ends = {name: np.asarray(pc.is_in(pairs[name], value_set=inside)) for name in ("a", "b")}
    outside = [
        pairs[ours].filter(pa.array(ends[theirs] & ~ends[ours])) for ours, theirs in (("a", "b"), ("b", "a"))
    ]
    return pc.unique(pa.concat_arrays([chunk for column in outside for chunk in column.chunks]))


def _odd(characters: Any, source: Any) -> Any:
    """Where a row's length is far from the median of its source, in logarithms: -1, 0 or 1."""
    logs, odd = np.log1p(characters), np.zeros(len(characters), np.int8)
    for number in np.unique(source):
        mine = source == number
        if mine.sum() < _FEW:
            continue
        off = logs[mine] - np.median(logs[mine])
        # Most rows of one length leave no median deviation; the mean one tells then.
        spread = np.median(np.abs(off)) / 0.6745 or np.abs(off).mean() * 1.2533
        if spread > 0:
            far = (np.abs(off) / spread > _ODD) & (np.abs(off) > _TWICE)
            odd[mine] = np.where(far, np.sign(off), 0).astype(np.int8)
    return odd
