"""Rows that also stand in a held-out split or a benchmark: equal, nearly equal, or with its words in them.

Equal and near texts are found as near-duplicates are (`near.py`), with two sides. A benchmark's prompt inside
a longer record is told by how many of its words stand in runs of 13 that both hold: four fifths are enough.
The 13, and that a run which more than 10 texts share is boilerplate, are from T. Brown et al., "Language
Models are Few-Shot Learners", 2020, appendix C; the four fifths from H. Touvron et al., "Llama 2", 2023,
appendix A.6.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ftaas_pipelines.data.likeness.minhash import (
    FIRST_BAND,
    KEY,
    SKETCH,
    differing,
    most_differing,
    ngrams,
    normal,
    shingles,
    signatures,
)
from ftaas_pipelines.data.likeness.shingled import shared

OVERLAP = 13  # words
COVERED = 0.8
BOILERPLATE = 10  # benchmark prompts that may share a run before it is nobody's own
_REACH = 128  # held-out items looked at in one band's bucket, half of them on either side
_TRIES = 32  # texts compared before an item counts as clean


@dataclass(frozen=True)
class Standing:
    """Where each of n texts stands in the held-out texts.

    Attributes:
        which: [n] int32, number of the held-out text that is equal or likest, -1 for none.
        jaccard: [n] float64, how alike; 1.0 for equal, 0.0 for none.
    """

    which: NDArray[np.int32]
    jaccard: NDArray[np.float64]


class Contamination:
    """The held-out prompts, ready to be asked for. Memory: their texts and 250 bytes each."""

    def __init__(self, held_out: Sequence[str], threshold: float, benchmarks: Sequence[str] = ()):
        """Indexes the held-out texts.

        Args:
            held_out: prompts of held-out splits and benchmarks that no training text may equal or be near.
            threshold: least Jaccard similarity of word 3-grams that counts as near.
            benchmarks: prompts that no record may contain (`overlaps`); those under 13 words do not count.
        """
        self._texts: list[str] = [normal(text) for text in held_out]
        self._threshold = threshold
        self._most = most_differing(threshold, 3)
        signed = signatures(held_out, threshold)
        self._sketch = np.ascontiguousarray(signed[:, SKETCH].T)
        bands = signed.shape[1] - FIRST_BAND
        self._exact = _Sorted(signed[:, [KEY]])
        self._bands = [_Sorted(signed[:, _forest(band, bands)]) for band in range(bands)]
        self._shingles: dict[int, NDArray[np.int64]] = {}
        self._runs = _Runs(benchmarks)

    def standing(self, texts: Sequence[str], signed: NDArray[np.uint64] | None = None) -> Standing:
        """Which of these texts stand in the held-out ones. What else is in the block changes nothing.

        Args:
            texts: a block, some thousands.
            signed: their `minhash.signatures` at the same threshold, where they are at hand.
        """
        out = Standing(np.full(len(texts), -1, np.int32), np.zeros(len(texts)))
        if not self._texts or not len(texts):
            return out
        plain = [normal(text) for text in texts]
        signed = signatures(plain, self._threshold) if signed is None else signed
        if signed.shape[1] != FIRST_BAND + len(self._bands):
            raise ValueError(f"the signatures were not made for a threshold of {self._threshold}")
        sketch = np.ascontiguousarray(signed[:, SKETCH].T)
        asked, held = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for band, known in enumerate(self._bands):
            a, h = known.beside(signed[:, _forest(band, len(self._bands))], _REACH)
            likely = differing(sketch[:, a], self._sketch[:, h]) <= self._most
            asked.append(a[likely])
            held.append(h[likely])
        pairs = np.unique(np.concatenate(asked) << 32 | np.concatenate(held))
        self._confirm(plain, *self._likest(sketch, pairs >> 32, pairs & 0xFFFFFFFF), out)
        equal, equal_held = self._exact.beside(signed[:, [KEY]], 2)
        for a, h in zip(equal.tolist(), equal_held.tolist(), strict=True):
            if plain[a] == self._texts[h]:
                out.which[a], out.jaccard[a] = h, 1.0
        empty = [number for number, text in enumerate(plain) if not text]
        out.which[empty], out.jaccard[empty] = -1, 0.0  # no prompt at all is nobody's
        return out

    def _likest(
        self, sketch: NDArray[np.uint64], i: NDArray[np.int64], j: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of the pairs of each text (`i`, ascending) the few whose sketches differ least."""
        order = np.lexsort((self._exact.rank[j], differing(sketch[:, i], self._sketch[:, j]), i))
        i, j = i[order], j[order]
        first = np.searchsorted(i, i)
        few = np.arange(len(i)) - first < _TRIES
        return i[few], j[few]

    def _confirm(self, plain: list[str], i: NDArray[np.int64], j: NDArray[np.int64], out: Standing) -> None:
        asked, i_places = np.unique(i, return_inverse=True)
        held, j_places = np.unique(j, return_inverse=True)
        sets = [shingles(plain[k]) for k in asked.tolist()] + [self._held(k) for k in held.tolist()]
        if not sets:
            return
        sizes = np.array([len(s) for s in sets])
        j_places = j_places + len(asked)
        common = shared(np.concatenate(sets), np.cumsum(sizes) - sizes, sizes, i_places, j_places)
        likeness = common / (sizes[i_places] + sizes[j_places] - common)
        for at in np.lexsort((-self._exact.rank[j], likeness)).tolist():  # the likest is written last
            if likeness[at] >= self._threshold:
                out.which[i[at]], out.jaccard[i[at]] = j[at], likeness[at]

    def _held(self, number: int) -> NDArray[np.int64]:
        if number not in self._shingles:
            self._shingles[number] = shingles(self._texts[number])
        return self._shingles[number]

    def overlaps(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """Number of the benchmark prompt that each text contains, -1 for none; [n] int32."""
        return np.fromiter((self._runs.contained(normal(text)) for text in texts), np.int32, len(texts))


class _Sorted:
    """Items ordered by some columns of their signatures, the first of which makes the bucket."""

    def __init__(self, columns: NDArray[np.uint64]):
        self._rows = _comparable(columns)
        self._items = np.argsort(self._rows, kind="stable")
        self._rows = self._rows[self._items]
        self._first = columns[self._items, 0]
        self.rank = np.argsort(self._items)

    def beside(self, columns: NDArray[np.uint64], reach: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Each asked row with the items of its bucket, at most `reach` of them, those nearest in the order.

        Returns:
            Number of the asked row and of the item, pair by pair.
        """
        first = columns[:, 0]
        low, high = np.searchsorted(self._first, first), np.searchsorted(self._first, first, "right")
        some = np.flatnonzero(high > low)
        low, high = low[some], high[some]
        place = np.searchsorted(self._rows, _comparable(columns[some]))
        low, high = np.maximum(low, place - reach // 2), np.minimum(high, place + reach // 2)
        sizes = high - low
        ends = np.cumsum(sizes)
        within = np.arange(sizes.sum()) - np.repeat(ends - sizes, sizes)
        return np.repeat(some, sizes), self._items[np.repeat(low, sizes) + within]


def _forest(band: int, bands: int) -> list[int]:
    """Columns that order a band's buckets: its own, the two that follow, the text's key."""
    return [*(FIRST_BAND + (band + k) % bands for k in range(3)), KEY]


def _comparable(columns: NDArray[np.uint64]) -> NDArray[np.bytes_]:
    """Rows of numbers as byte strings that sort as the numbers do."""
    big = np.ascontiguousarray(columns.astype(">u8"))
    return big.view(f"S{8 * columns.shape[1]}").reshape(-1)


class _Runs:
    """Runs of 13 words of some prompts that are no boilerplate: whose they are and where they begin."""

    def __init__(self, texts: Sequence[str]):
        plain = [normal(text) for text in texts]
        runs = [ngrams(text, OVERLAP)[: None if text.count(" ") >= OVERLAP - 1 else 0] for text in plain]
        sizes = [len(r) for r in runs]
        every = np.concatenate([np.zeros(0, np.int64), *runs])
        owners = np.repeat(np.arange(len(runs)), sizes)
        begins = np.arange(len(every)) - np.repeat(np.cumsum([0, *sizes])[:-1], sizes)
        order = np.argsort(every, kind="stable")
        _, place, counts = np.unique(every[order], return_inverse=True, return_counts=True)
        order = order[counts[place] <= BOILERPLATE]
        self._runs, self._owners, self._begins = every[order], owners[order], begins[order]
        self._by_owner = np.argsort(self._owners, kind="stable")
        self._sorted_owners = self._owners[self._by_owner]

    def contained(self, text: str) -> int:
        """The prompt of which the text holds most, if that is enough; of equals the first; -1 for none."""
        found = np.unique(ngrams(text, OVERLAP))
        hits = _members(self._runs, found)
        best, most = -1, 0.0
        for owner in np.unique(self._owners[hits]).tolist():
            own = self._by_owner[_members(self._sorted_owners, np.array([owner]))]
            held = hits[self._owners[hits] == owner]
            share = len(_words_of(self._begins[held])) / len(_words_of(self._begins[own]))
            if share >= COVERED and share > most:
                best, most = owner, share
        return best


def _members(ordered: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places in `ordered` that hold one of the values (ascending)."""
    low, high = np.searchsorted(ordered, values), np.searchsorted(ordered, values, "right")
    some = high > low
    return np.concatenate([np.zeros(0, np.int64), *map(np.arange, low[some], high[some])])


def _words_of(begins: NDArray[np.int64]) -> set[int]:
    """Places of the words that runs which begin there cover."""
    return {place for begin in begins.tolist() for place in range(begin, begin + OVERLAP)}
