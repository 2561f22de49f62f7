"""A dataset version to its splits: reads keys, places records, writes one Parquet file a split.

    train.parquet, validation.parquet, test.parquet, challenge_<source>.parquet   records, by record_id
    anchors.parquet     (group, split) of every group that was ever placed, by group
    dropped.parquet     (record_id, source, reason) of the records left out

Keys are read bucket by bucket and held (about 150 bytes a record); rows are read and written bucket by
bucket. Imported by stage programs only: it needs pyarrow.
"""

import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from ftaas_pipelines.data import tables
from ftaas_pipelines.data.splits import placement, split_keys
from ftaas_pipelines.data.splits.placement import CHALLENGE, NONE, REASONS, TEST, Keys, Placement
from ftaas_pipelines.data.splits.rules import SPLITS, shortage
from ftaas_pipelines.data.splits.split_keys import Gone
from ftaas_pipelines.errors import InputInvalid, SpecUnusable
from ftaas_pipelines.projects.dataset import Splits
from ftaas_pipelines.store import Artifact, short

_MOST_LABELS, _LEAST_PER_LABEL, _LABEL_CHARACTERS = 200, 5, 80


def write(dataset: Artifact, anchors: Artifact | None, options: Splits, out: Path) -> dict[str, Any]:
    """Write the files of a `splits` artifact below `out`.

    Args:
        anchors: the splits that these grow from.

    Returns:
        The artifact's content.

    Raises:
        InputInvalid: a split has too few records, or the frozen test split changed.
        SpecUnusable: an artifact is of another kind.
    """
    for artifact, kind in ((dataset, "dataset"), (anchors, "splits")):
        if artifact is not None and artifact.kind != kind:
            raise SpecUnusable(f"is not a {kind}", "inputs", artifact.kind, f"name the digest of a {kind}")
    keys = split_keys.read_keys(dataset.path, options)
    before, gone = split_keys.read_before(anchors, keys, options)
    if anchors is not None and before.frozen:
        split_keys.check_frozen(anchors, dataset, keys, options)
    places = placement.place(keys, options, before)
    counts: dict[str, int] = {s: int((places.records == i).sum()) for i, s in enumerate(SPLITS)}
    if problems := shortage(counts, options, f"splits of dataset {short(dataset.digest)}"):
        raise InputInvalid(problems)
    _write_anchors(out / "anchors.parquet", keys, places, gone)
    frozen = anchors.file("test.parquet") if anchors is not None and before.frozen else None
    written = _Written(dataset, places, out, frozen)
    leakage = _leakage(keys, places, written.prompts)
    moved = (before.records != NONE) & (places.records != NONE) & (before.records != places.records)
    return {
        "dataset": dataset.digest,
        "counts": {**counts, **{f"challenge_{name}": n for name, n in sorted(written.challenges.items())}},
        "leakage": leakage,
        "options": options.model_dump(mode="json"),
        "declared": written.declared,
        "quarantined": {
            reason: n for i, reason in enumerate(REASONS) if (n := int((places.reasons == i).sum()))
        },
        "labels": written.labels(),
        "anchors": anchors.digest if anchors else None,
        "frozen": {"name": options.freeze, "records": counts["test"]} if options.freeze else None,
        "moved": int(moved.sum()),
    }


# -- what is written ---------------------------------------------------------------------------


class _Written:
    """The files of the splits, and what was seen while they were written.

    Attributes:
        prompts: [n] uint64, hash of each record's normalised prompt; 0 where it has none.
        challenges: records of each challenge.
        declared: the split that each source is declared to be.
    """

    def __init__(self, dataset: Artifact, places: Placement, out: Path, frozen: Path | None):
        self._out, self._places, self._frozen = out, places, frozen
        self._files: dict[str, _Rows] = {}
        self._labels: Counter[tuple[int, str]] | None = Counter()
        self.prompts = np.zeros(len(places.records), np.uint64)
        self.challenges: Counter[str] = Counter()
        self.declared: dict[str, str | None] = {}
        records = dataset.path / "records"
        self._schema = pq.read_schema(tables.buckets(records)[0]).remove_metadata()
        for name in SPLITS:
            self._file(name, self._schema)
        self._file("dropped", tables.DROPPED)
        at = 0
        for piece in tables.pieces(records):
            self._add(piece.replace_schema_metadata(None), slice(at, at + len(piece)))
            at += len(piece)
        for file in self._files.values():
            file.close()
        if frozen:
            shutil.copyfile(frozen, out / "test.parquet")

    def _file(self, name: str, schema: Any) -> "_Rows":
        if name not in self._files:
            self._files[name] = _Rows(self._out / f"{name}.parquet", schema)
        return self._files[name]

    def _add(self, piece: Any, here: slice) -> None:
        split, reasons = self._places.records[here], self._places.reasons[here]
        for number, name in enumerate(SPLITS):
            if number != TEST or not self._frozen:
                self._file(name, self._schema).add(piece.filter(pa.array(split == number)))
        for name in piece["challenge"].drop_null().unique().to_pylist():
            rows = piece.filter(pa.array([of == name for of in piece["challenge"].to_pylist()]))
            self._file(f"challenge_{name}", self._schema).add(rows)
            self.challenges[name] += len(rows)
        left_out = np.flatnonzero(reasons != NONE)
        dropped = piece.select(["record_id", "source"]).take(left_out)
        reason = pa.array([REASONS[i] for i in reasons[left_out]], pa.string())
        self._file("dropped", tables.DROPPED).add(dropped.append_column("reason", reason))
        self.prompts[here] = [_prompt(text) for text in piece["prompt"].to_pylist()]
        self.declared.update(
            zip(piece["source"].to_pylist(), piece["declared_split"].to_pylist(), strict=True)
        )
        if self._labels is not None:
            self._count_labels(self._labels, piece["answer"], split)

    def _count_labels(self, labels: Counter[tuple[int, str]], answers: Any, split: Any) -> None:
        for number in range(len(SPLITS)):
            for found in answers.filter(pa.array(split == number)).value_counts().to_pylist():
                labels[number, found["values"]] += found["counts"]
        if len({answer for _, answer in labels}) > _MOST_LABELS:
            self._labels = None

    def labels(self) -> dict[str, dict[str, int]]:
        """Records of each answer by split, where answers are labels: few, short, and said several times."""
        counts = self._labels or Counter()
        distinct = {answer for _, answer in counts}
        longest = max(map(len, distinct), default=0)
        if counts.total() < _LEAST_PER_LABEL * len(distinct) or longest > _LABEL_CHARACTERS:
            return {}
        by_split: dict[str, dict[str, int]] = defaultdict(dict)
        for (number, answer), n in sorted(counts.items()):
            by_split[SPLITS[number]][answer] = n
        return dict(by_split)


class _Rows:
    """A Parquet file in the making, in row groups of a fixed size however its rows arrive."""

    def __init__(self, path: Path, schema: Any):
        self._writer = tables.writer(path, schema)
        self._rest = schema.empty_table()
        self._any = False

    def add(self, piece: Any) -> None:
        self._rest = pa.concat_tables([self._rest, piece])
        while len(self._rest) >= tables.GROUP_ROWS:
            self._write(self._rest.slice(0, tables.GROUP_ROWS))
            self._rest = self._rest.slice(tables.GROUP_ROWS)

    def close(self) -> None:
        if len(self._rest) or not self._any:
            self._write(self._rest)
        self._writer.close()

    def _write(self, group: Any) -> None:
        # One chunk a column: page borders would follow the chunks' borders.
        self._writer.write_table(group.combine_chunks(), row_group_size=tables.GROUP_ROWS)
        self._any = True


def _write_anchors(path: Path, keys: Keys, places: Placement, gone: Gone) -> None:
    """Every group that is placed or ever was, sorted by group."""
    held = places.groups != NONE
    groups = np.concatenate([keys.group_keys[held], gone.groups])
    numbers = np.concatenate([places.groups[held], gone.splits])
    order = np.argsort(groups)
    names = pa.array(SPLITS)

    def pieces() -> Any:
        for at in range(0, len(order), tables.GROUP_ROWS):
            here = order[at : at + tables.GROUP_ROWS]
            raw = groups[here].tobytes().hex()
            hexed = [raw[i : i + 64] for i in range(0, len(raw), 64)]
            yield pa.table([pa.array(hexed, pa.string()), names.take(numbers[here])], schema=tables.ANCHORS)

    tables.write_pieces(path, pieces(), tables.ANCHORS)


def _prompt(text: str) -> int:
    """The prompt as leaks are told by: case and white space do not count."""
    normal = " ".join(text.casefold().split())
    return xxhash.xxh3_64_intdigest(normal.encode()) if normal else 0


def _leakage(keys: Keys, places: Placement, prompts: Any) -> dict[str, int]:
    """Groups, normalised prompts and near-duplicate pairs that stand in more than one split."""
    split = places.records
    standing = (split != NONE) & (split != CHALLENGE)
    ends = split[keys.edges[standing[keys.edges].all(axis=1)]]
    asked = standing & (prompts != 0)
    return {
        "shared_groups": _in_several(keys.groups[standing], split[standing]),
        "shared_prompts": _in_several(prompts[asked], split[asked]),
        "near_pairs": int((ends[:, 0] != ends[:, 1]).sum()),
    }


def _in_several(values: Any, split: Any) -> int:
    """How many values stand in more than one split."""
    each = [np.unique(values[split == number]) for number in range(len(SPLITS))]
    return int((np.unique(np.concatenate(each), return_counts=True)[1] > 1).sum())
