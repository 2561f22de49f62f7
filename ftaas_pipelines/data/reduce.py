"""Pass 2 of `prepare`: which records go and why, decided on keys alone.

Rows have numbers (all shards one after the other); items are what near-duplicates are told by, one a
distinct normalised prompt (or record), numbered in the order of their keys. Nothing depends on how the
rows were cut into shards: every choice is by content, or by the source's digest and row.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute

from ftaas_pipelines.data import tables
from ftaas_pipelines.data.gather import REASONS
from ftaas_pipelines.data.inputs import DatasetInputs
from ftaas_pipelines.data.likeness import exact as duplicates
from ftaas_pipelines.data.likeness import near
from ftaas_pipelines.data.likeness.contamination import Contamination
from ftaas_pipelines.data.made import Keys, near_text
from ftaas_pipelines.data.raw import readers, shards
from ftaas_pipelines.data.rows import formats, records
from ftaas_pipelines.errors import InputInvalid, Problem
from ftaas_pipelines.store import file_digest

pc: Any = pyarrow.compute  # its functions are made at run time
# Who keeps a record that several splits claim: the first. What others lose is dropped with the reason.
SPLITS: tuple[str | None, ...] = ("test", "challenge", "validation", "train", None)
_BLOCK = 20_000  # items compared with held-out texts at a time
_CHALLENGE, _TRAIN = SPLITS.index("challenge"), SPLITS.index("train")


@dataclass
class Decided:
    """What the reduce decided; the shards hold the decisions themselves.

    Attributes:
        kept: records that stay.
        near: confirmed near-duplicate pairs among them (Arrow, `tables.NEAR`), sorted.
        contaminated: training records that stand in a held-out split or a benchmark, by its name.
    """

    kept: int
    near: Any = field(default_factory=tables.NEAR.empty_table)
    contaminated: dict[str, int] = field(default_factory=dict[str, int])


def reduce(
    inputs: DatasetInputs, folders: Sequence[Path], benchmarks: Mapping[str, Path], work: Path
) -> Decided:
    """Decide every row of the shards; writes `decisions.npy` (uint8, in the rows' order) into each."""
    rows = Rows(inputs, folders)
    _leaks(rows)
    _exact(rows)
    out = Decided(0)
    if wants_items(inputs) and rows.alive.any():
        items = Items(rows, work / "items")
        rows.forget_keys()
        out.contaminated = _contaminated(rows, items, inputs, benchmarks)
        if inputs.duplicates.near != "off":
            edges = near.near_pairs(items.files, items.texts, inputs.duplicates.threshold, work / "near")
            if inputs.duplicates.near == "drop":
                _drop_near(rows, items, edges)
            out.near = _pairs(rows, items, edges)
    out.kept = int(rows.alive.sum())
    for folder, start, end in rows.spans:
        np.save(folder / "decisions.npy", rows.decided[start:end])
    return out


def wants_items(inputs: DatasetInputs) -> bool:
    """Whether likeness is asked for at all; exact duplicates and leaks are told by keys alone."""
    return inputs.duplicates.near != "off" or bool(inputs.benchmarks)


class Rows:
    """The keys of all shards' rows, one after the other.

    Attributes:
        decided: uint8, 0 while a row stays, else 1 + a number of `REASONS`.
        split: uint8, place of its declared split in `SPLITS`.
        source: int32, rank of its source file's digest; one file in two sources: of the source's name then.
    """

    def __init__(self, inputs: DatasetInputs, folders: Sequence[Path]):
        declared = {s.name: SPLITS.index(s.split) for s in inputs.sources}
        metas = [orjson.loads((folder / "meta.json").read_bytes()) for folder in folders]
        files = sorted({(meta["sha256"], meta["source"]) for meta in metas})
        self.on = inputs.duplicates.on
        self.keys = Keys.join([Keys.load(folder / "keys.npz") for folder in folders])
        sizes = [meta["rows"] for meta in metas]
        ends = np.cumsum(sizes).tolist()
        self.spans = [(f, end - size, end) for f, size, end in zip(folders, sizes, ends, strict=True)]
        self.split = np.repeat(np.array([declared[m["source"]] for m in metas], np.uint8), sizes)
        self.source = np.repeat(
            np.array([files.index((m["sha256"], m["source"])) for m in metas], np.int32), sizes
        )
        self.decided = np.zeros(len(self.keys.line), np.uint8)

    def forget_keys(self) -> None:
        """Let go of keys that have told duplicates, leaks and items: half a gigabyte at 10 million rows."""
        nothing = self.keys.content[:0].copy()
        self.keys = replace(self.keys, content=nothing, prompt=nothing, item=nothing)

    @property
    def alive(self) -> Any:
        """Which rows stay, as far as decided."""
        return self.decided == 0

    @property
    def place(self) -> Any:
        """Where the rows stand in their files, int64: they are ordered by it.

        Rows of a JSON list may share a line. A shard holds its rows by their first byte, so that byte goes
        before their order in the shard: how the file was cut has no say.
        """
        return self.keys.line << 8 | self.keys.first

    @property
    def trains(self) -> Any:
        """Which rows may be trained on: no split that is held apart claims them."""
        return self.split >= _TRAIN

    def drop(self, gone: Any, reason: str) -> None:
        """Decide the rows of a mask that are not decided yet."""
        self.decided[gone & self.alive] = 1 + REASONS.index(reason)

    def shard_of(self, numbers: Any) -> Iterator[tuple[Path, Any]]:
        """Ascending row numbers by the shard they stand in: its folder and the places in it."""
        for folder, start, end in self.spans:
            low, high = np.searchsorted(numbers, (start, end))
            if high > low:
                yield folder, numbers[low:high] - start

    def column(self, numbers: Any, names: Sequence[str]) -> Any:
        """Columns (Arrow) of these rows, by ascending number."""
        parts = [_read(folder, names).take(pa.array(at)) for folder, at in self.shard_of(numbers)]
        return pa.concat_tables(parts)


class Items:
    """What near-duplicates are told by: one item a distinct prompt (or record) among the rows that stay.

    Attributes:
        row: int64, the row that speaks for an item: of those with its text the least by content.
        files: signatures of the items, in their order.
    """

    def __init__(self, rows: Rows, spill: Path):
        self.rows = rows
        keys, alive = rows.keys, np.flatnonzero(rows.alive)
        item, content = keys.item[alive], keys.content[alive]
        order = np.lexsort((content[:, 1], content[:, 0], item[:, 1], item[:, 0]))
        first = np.ones(len(order), np.bool_)
        first[1:] = (item[order[1:]] != item[order[:-1]]).any(axis=1)
        speakers = alive[order[first]]
        place = np.argsort(speakers)
        self.row = speakers[place]
        number = np.empty(len(place), np.int32)
        number[place] = np.arange(len(place), dtype=np.int32)
        of_row = np.full(len(rows.decided), -1, np.int32)
        of_row[alive[order]] = number[np.cumsum(first) - 1]
        self.of_row = of_row
        spill.mkdir(parents=True, exist_ok=True)
        self.files: list[Path] = []
        for folder, at in rows.shard_of(self.row):
            self.files.append(spill / f"{len(self.files):06d}.npy")
            np.save(self.files[-1], np.asfortranarray(np.load(folder / "bands.npy", mmap_mode="r")[at]))

    def texts(self, numbers: Any, whole: bool = False) -> list[str]:
        """The texts of these items, by ascending number; `whole`: all that the record says."""
        if not len(numbers):
            return []
        table = self.rows.column(self.row[numbers], ("prompt", "answer"))
        prompts, answers = table["prompt"].to_pylist(), table["answer"].to_pylist()
        if self.rows.on == "prompt" and not whole:
            return [prompt or answer for prompt, answer in zip(prompts, answers, strict=True)]
        return [f"{prompt} {answer}" for prompt, answer in zip(prompts, answers, strict=True)]

    def signed(self, numbers: Any) -> Any:
        """The signatures of these items, by ascending number."""
        parts, start = list[Any](), 0
        for path in self.files:
            part = np.load(path, mmap_mode="r")
            low, high = np.searchsorted(numbers, (start, start + len(part)))
            parts.append(part[numbers[low:high] - start])
            start += len(part)
        return np.concatenate(parts)

    def held_out(self) -> tuple[Any, list[str]]:
        """Items that a split held apart claims, ascending, and the split of each."""
        held = np.flatnonzero((self.of_row >= 0) & ~self.rows.trains & self.rows.alive)
        items, first = np.unique(self.of_row[held], return_index=True)
        return items, [str(SPLITS[self.rows.split[held[k]]]) for k in first.tolist()]


def _leaks(rows: Rows) -> None:
    """Drop what a split that is held apart has already: the same prompt, or the same group.

    A challenge is scored beside the test and trains nothing, so it may share prompts with it.
    """
    keys = rows.keys
    for split in ("test", "challenge", "validation"):
        place = SPLITS.index(split)
        own = rows.split == place
        if own.any():
            held = np.concatenate([keys.prompt[own], keys.group[own]])
            shared = member(keys.prompt, held) | member(keys.group, held)
            rows.drop(shared & (rows.split > place) & (rows.split != _CHALLENGE), f"also_in_{split}")


def _exact(rows: Rows) -> None:
    """Keep one of the records that came in alike, or became alike by cleaning."""
    alive = np.flatnonzero(rows.alive)
    content, place = rows.keys.content[alive], rows.place[alive]
    kept = duplicates.exact(content, rows.split[alive], rows.source[alive], place)
    gone = np.zeros(len(rows.decided), np.bool_)
    gone[alive[~kept]] = True
    rows.drop(gone, "duplicate")


def member(keys: Any, held: Any) -> Any:
    """Which of the 128-bit keys [n, 2] stand among `held` [m, 2]."""
    order = np.lexsort((held[:, 1], held[:, 0]))
    held = held[order]
    at = np.searchsorted(held[:, 0], keys[:, 0])
    at[at == len(held)] = 0
    return (held[at] == keys).all(axis=1)


def _contaminated(
    rows: Rows, items: Items, inputs: DatasetInputs, benchmarks: Mapping[str, Path]
) -> dict[str, int]:
    """Training rows that stand, nearly or in 13 words on end, in a split held apart or in a benchmark."""
    held, names = items.held_out()
    texts = items.texts(held)
    asked: list[str] = []
    for name in sorted(benchmarks):
        prompts = _prompts(benchmarks[name], inputs)
        asked += prompts
        names += [name] * len(prompts)
    if not names:
        return {}
    index = Contamination(texts + asked, inputs.duplicates.threshold, asked)
    mine = np.setdiff1d(np.arange(len(items.row), dtype=np.int32), held)
    counts: Counter[str] = Counter()
    stands = np.zeros(len(items.row), np.bool_)
    for start in range(0, len(mine), _BLOCK):
        block = mine[start : start + _BLOCK]
        which = index.standing(items.texts(block), items.signed(block)).which
        if asked:
            inside = index.overlaps(items.texts(block, whole=True))
            which = np.where((which < 0) & (inside >= 0), inside + len(texts), which)
        stands[block] = which >= 0
        counts.update(names[number] for number in which[which >= 0].tolist())
    if inputs.duplicates.contamination == "drop":
        rows.drop((items.of_row >= 0) & stands[items.of_row] & rows.trains, "contaminated")
    return dict(sorted(counts.items()))


def _prompts(path: Path, inputs: DatasetInputs) -> list[str]:
    """What a benchmark file asks, read as any source is."""
    with tempfile.TemporaryDirectory() as spool:
        look = readers.look(path)
        layout = formats.resolve(look.columns, path, None, {}, look.rows)
        read = records.reader(layout, path.name, None, False, None, [])
        found: list[str] = []
        for shard in shards.cut(path, Path(spool), "utf-8", path.name, file_digest(path), str(path)):
            for row in shards.rows(shard):
                if isinstance(row, Problem):
                    raise InputInvalid([row])
                try:
                    found.append(near_text(read(row), inputs.duplicates.on))
                except records.RowFault as fault:
                    where = f"{path}:{row.line}"
                    raise InputInvalid([Problem(fault.what, where, fault.got, fault.do)]) from None
    return found


def _drop_near(rows: Rows, items: Items, edges: near.Edges) -> None:
    """Of near-duplicates that may be trained on, one stays: the least (source digest, row).

    One after the other: a row goes when it is near to one that stays, so nothing goes for the sake of a
    chain of likeness alone.
    """
    speaker = items.row
    rank = np.lexsort((rows.place[speaker], rows.source[speaker], rows.split[speaker]))
    place = np.empty(len(rank), np.int64)
    place[rank] = np.arange(len(rank))
    i, j = place[edges.i], place[edges.j]
    later, earlier = np.maximum(i, j), np.minimum(i, j)
    order = np.lexsort((earlier, later))
    gone = np.zeros(len(rank), np.bool_)
    trains = rows.trains[speaker[rank]]
    for a, b in zip(later[order].tolist(), earlier[order].tolist(), strict=True):
        if trains[a] and not gone[b]:
            gone[a] = True
    lost = np.zeros(len(rank), np.bool_)
    lost[rank] = gone
    of_row = items.of_row
    rows.drop((of_row >= 0) & lost[of_row] & rows.trains, "near_duplicate")


def _pairs(rows: Rows, items: Items, edges: near.Edges) -> Any:
    """The pairs whose two rows stay, by record_id, sorted; equal texts of two groups are such a pair too."""
    alive = rows.alive[items.row]
    both = alive[edges.i] & alive[edges.j]
    speaker, sibling = _siblings(rows, items)
    i = np.concatenate([items.row[edges.i[both]], speaker])
    j = np.concatenate([items.row[edges.j[both]], sibling])
    likeness = np.concatenate([edges.jaccard[both], np.ones(len(speaker))])
    needed = np.unique(np.concatenate([i, j]))
    if not len(needed):
        return tables.NEAR.empty_table()
    names = rows.column(needed, ("record_id",))["record_id"].combine_chunks()
    a, b = (names.take(pa.array(np.searchsorted(needed, k))) for k in (i, j))
    ordered = pc.less(a, b)
    columns = [pc.if_else(ordered, a, b), pc.if_else(ordered, b, a), pa.array(likeness, pa.float64())]
    return pa.table(columns, schema=tables.NEAR).sort_by([("a", "ascending"), ("b", "ascending")])


def _siblings(rows: Rows, items: Items) -> tuple[Any, Any]:
    """Rows with one text in several groups (`group_by`), each with the row that speaks for the text."""
    of_row = items.of_row
    held = np.flatnonzero((of_row >= 0) & rows.alive)
    speaker = items.row[of_row[held]]
    apart = (rows.keys.group[held] != rows.keys.group[speaker]).any(axis=1) & rows.alive[speaker]
    return speaker[apart], held[apart]


def _read(folder: Path, names: Sequence[str]) -> Any:
    with pa.OSFile(str(folder / "rows.arrow")) as source:
        schema = pa.ipc.open_file(source).schema
        fields = [schema.get_field_index(name) for name in names]
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        return pa.ipc.open_file(source, options=options).read_all()
