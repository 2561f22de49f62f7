"""Near-duplicates among many texts: proposed by their signatures, confirmed by true Jaccard.

Templated text puts thousands of items into one bucket of a band, most of them no near-duplicates of each
other. So a bucket is not paired off: it is ordered by the bands that follow (M. Bawa, T. Condie, P. Ganesan,
"LSH Forest", 2005), which puts the likest beside each other, and each item looks at the next 256. Sketches
of 256 bits say in a few nanoseconds whether the texts are worth a look. Items that are in one group and have
`ENOUGH` neighbours look no further. All choices are by what the texts say: neither the order of the items
nor the cut of their files changes a pair.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ftaas_pipelines.data.likeness.exact import components, repeated
from ftaas_pipelines.data.likeness.minhash import FIRST_BAND, KEY, SKETCH, differing, mix, most_differing
from ftaas_pipelines.data.likeness.shingled import Shingled, TextOf

ENOUGH = 8
TRIES = (128, 512)  # texts that turned out unlike, after which an item asks for no more (and no likely ones)
_REACHES = ((1, 2), (3, 8), (9, 32), (33, 128), (129, 256))  # how far to look, confirmed after each
_POSITIONS = 65_536  # of a band's order that are looked at between two confirmations
_REMEMBERED = 22  # bits of the table of pairs that were confirmed or refuted in an earlier band

Column = Callable[[int], NDArray[np.uint64]]
Items = NDArray[np.int32]


@dataclass(frozen=True)
class Edges:
    """Confirmed pairs, sorted.

    Attributes:
        i, j: [pairs] int32 item numbers, i < j.
        jaccard: [pairs] float64.
        compared: how many pairs of texts were compared to find them.
    """

    i: Items
    j: Items
    jaccard: NDArray[np.float64]
    compared: int


def near_pairs(signature_files: Sequence[Path], text_of: TextOf, threshold: float, spill: Path) -> Edges:
    """Pairs of near-duplicates: all of a small group, of a large one enough to hold it together.

    Args:
        signature_files: `.npy` files of `minhash.signatures`; items are numbered through them, from 0.
        text_of: the texts of these items: asked for ascending numbers, each once, `shingled.BLOCK` at a time.
        threshold: least Jaccard similarity of word 3-grams.
        spill: a folder for what does not stay in memory; emptied again.
    """
    signed = [np.load(path, mmap_mode="r") for path in signature_files]
    n = sum(len(part) for part in signed)
    if n < 2:
        return Edges(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0), 0)

    def column(number: int) -> NDArray[np.uint64]:
        return np.concatenate([part[:, number] for part in signed])

    spill.mkdir(parents=True, exist_ok=True)
    bands = signed[0].shape[1] - FIRST_BAND
    key = column(KEY)
    involved = np.zeros(n, np.bool_)
    orders: list[Path] = []
    for band in range(bands):
        order = _ordered(column, key, [FIRST_BAND + (band + k) % bands for k in range(3)])
        involved[order[0]] = True
        orders.append(spill / f"band-{band:03}.npy")
        np.save(orders[-1], order)
    shingled = Shingled(np.flatnonzero(involved).astype(np.int32), text_of, spill / "shingles.bin")
    search = _Search(key, np.stack([column(number) for number in SKETCH]), shingled, threshold)
    for path in orders:
        search.look_along(np.load(path))
        path.unlink()
    shingled.delete()
    return search.edges()


def _ordered(column: Column, key: NDArray[np.uint64], bands: list[int]) -> Items:
    """Items that share their hash in the first of `bands`, the likest beside each other.

    Returns:
        [2, items] int32: the items, and the number of the bucket that each is in.
    """
    first = column(bands[0])
    order = repeated(first)
    first = first[order]
    arranged = np.lexsort((key[order], *(column(band)[order] for band in bands[:0:-1]), first))
    first = first[arranged]
    bucket = np.concatenate([[0], np.cumsum(first[1:] != first[:-1])]) if len(first) else first
    return np.stack([order[arranged], bucket]).astype(np.int32)


class _Search:
    """What is known so far: groups (`parent`), and for each item its neighbours and its vain tries."""

    def __init__(
        self, key: NDArray[np.uint64], sketch: NDArray[np.uint64], shingled: Shingled, threshold: float
    ):
        n = len(key)
        self._key, self._sketch, self._shingled, self._threshold = key, sketch, shingled, threshold
        self._most, self._likely = most_differing(threshold, 3), most_differing(threshold, 1)
        self._parent = np.arange(n, dtype=np.int32)
        self._neighbours = np.zeros(n, np.int32)
        self._tries = np.zeros(n, np.int32)
        self._remembered = np.zeros(1 << _REMEMBERED, np.uint64)
        self._compared = 0
        self._found: list[tuple[Items, Items, NDArray[np.float64]]] = []

    def look_along(self, order: Items) -> None:
        """One band: pairs within reach of each other in its order (as `_ordered` gives it)."""
        items, bucket = order
        for reach in _REACHES:
            open_ = self._open(items, bucket, reach[0])
            items, bucket = items[open_], bucket[open_]
            for start in range(0, len(items), _POSITIONS):
                part = slice(start, start + _POSITIONS + reach[1])
                pairs = list(self._worth_a_look(items[part], bucket[part], reach))
                if pairs:
                    self._confirm(
                        np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])
                    )

    def _open(self, items: Items, bucket: Items, reach: int) -> NDArray[np.bool_]:
        """Items in buckets that are large enough for this reach and not yet one well-knit group."""
        if not len(items):
            return np.zeros(0, np.bool_)
        starts = np.flatnonzero(np.concatenate([[True], bucket[1:] != bucket[:-1]]))
        sizes = np.diff(starts, append=len(items))
        group = self._group(items)
        done = np.minimum.reduceat(group, starts) == np.maximum.reduceat(group, starts)
        done &= np.minimum.reduceat(self._neighbours[items], starts) >= ENOUGH
        return np.repeat((sizes > reach) & ~done, sizes)

    def _worth_a_look(
        self, items: Items, bucket: Items, reach: tuple[int, int]
    ) -> Iterator[tuple[Items, Items]]:
        """Pairs within reach whose sketches are alike and whose texts may say something new."""
        sketch = self._sketch[:, items]
        for step in range(reach[0], min(reach[1], len(items) - 1) + 1):
            near = slice(0, min(_POSITIONS, len(items) - step))
            far = slice(step, near.stop + step)
            same = bucket[near] == bucket[far]
            if not same.any():
                return  # no bucket is longer
            apart = differing(sketch[:, near], sketch[:, far])
            at = np.flatnonzero(same & (apart <= self._most))
            i, j = items[at], items[at + step]
            new = np.minimum(self._neighbours[i], self._neighbours[j]) < ENOUGH
            new |= self._group(i) != self._group(j)
            tries = np.where(apart[at] <= self._likely, TRIES[1], TRIES[0])
            new &= np.minimum(self._tries[i], self._tries[j]) < tries
            yield i[new], j[new]

    def _confirm(self, i: Items, j: Items) -> None:
        keys = self._key[i], self._key[j]
        pair = mix(np.minimum(*keys) ^ mix(np.maximum(*keys)))
        slot = pair >> np.uint64(64 - _REMEMBERED)
        new = self._remembered[slot] != pair
        i, j, pair, slot = i[new], j[new], pair[new], slot[new]
        self._remembered[slot] = pair
        likeness = self._shingled.jaccard(i, j)
        self._compared += len(i)
        near = likeness >= self._threshold
        for counts, counted in ((self._neighbours, near), (self._tries, ~near)):
            np.add.at(counts, i[counted], 1)
            np.add.at(counts, j[counted], 1)
        i, j = i[near], j[near]
        self._found.append((np.minimum(i, j), np.maximum(i, j), likeness[near]))
        self._join(self._group(i), self._group(j))

    def _group(self, items: Items) -> Items:
        group = self._parent[items]
        while True:
            above = self._parent[group]
            if (above == group).all():
                return group
            group = above

    def _join(self, a: Items, b: Items) -> None:
        roots, places = np.unique(np.concatenate([a, b]), return_inverse=True)
        places = places.astype(np.int32)
        self._parent[roots] = roots[components(len(roots), places[: len(a)], places[len(a) :])]

    def edges(self) -> Edges:
        nothing = (np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0))
        i, j, likeness = (np.concatenate(part) for part in zip(nothing, *self._found, strict=True))
        pair, first = np.unique(i.astype(np.int64) << 32 | j, return_index=True)
        i, j = pair >> 32, pair & 0xFFFFFFFF
        return Edges(i.astype(np.int32), j.astype(np.int32), likeness[first], self._compared)
