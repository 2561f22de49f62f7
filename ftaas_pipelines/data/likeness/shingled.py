"""Shingles of many texts on disk, and the true Jaccard similarity of pairs of them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftaas_pipelines.data.likeness.minhash import normal, shingles

BLOCK = 16_384  # texts in memory at a time
_ELEMENTS = 4_000_000  # shingles in memory at a time, of one side

TextOf = Callable[[NDArray[np.int32]], list[str]]


class Shingled:
    """The shingles of some items: 8 bytes each in a file, read as they are compared."""

    def __init__(self, items: NDArray[np.int32], text_of: TextOf, path: Path):
        """Writes the file, asking `text_of` for each item once, in the order of `items` (ascending)."""
        self._items = items
        self._path = path
        sizes: list[int] = []
        with path.open("wb") as out:
            for start in range(0, len(items), BLOCK):
                for text in text_of(items[start : start + BLOCK]):
                    found = shingles(normal(text))
                    sizes.append(len(found))
                    out.write(found.tobytes())
        self._sizes = np.array(sizes, np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes

    def delete(self) -> None:
        self._path.unlink()

    def jaccard(self, i: NDArray[np.int32], j: NDArray[np.int32]) -> NDArray[np.float64]:
        """True Jaccard similarity of each pair of items, [pairs] float64."""
        a, b = np.searchsorted(self._items, i), np.searchsorted(self._items, j)
        out = np.zeros(len(i))
        reached = np.cumsum(self._sizes[a] + self._sizes[b]) // (2 * _ELEMENTS)
        cuts = [0, *(np.flatnonzero(np.diff(reached)) + 1).tolist(), len(i)]
        with self._path.open("rb") as file:
            for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
                out[start:stop] = self._jaccard(a[start:stop], b[start:stop], file.fileno())
        return out

    def _jaccard(self, i: NDArray[np.intp], j: NDArray[np.intp], file: int) -> NDArray[np.float64]:
        wanted, places = np.unique(np.concatenate([i, j]), return_inverse=True)
        sizes = self._sizes[wanted]
        # Read, not mapped: pages of a map would stay and count as this process's memory.
        spans = zip((sizes * 8).tolist(), (self._starts[wanted] * 8).tolist(), strict=True)
        flat = np.frombuffer(b"".join(os.pread(file, size, start) for size, start in spans), np.int64)
        starts = np.cumsum(sizes) - sizes
        common = shared(flat, starts, sizes, places[: len(i)], places[len(i) :])
        return common / (self._sizes[i] + self._sizes[j] - common)


def shared(
    flat: NDArray[np.int64],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    i: NDArray[np.intp],
    j: NDArray[np.intp],
) -> NDArray[np.int64]:
    """How many elements sets i[k] and j[k] share; set s is flat[starts[s]:][:sizes[s]], ascending."""
    from scipy.sparse import csr_array

    def rows(which: NDArray[np.intp]) -> Any:
        lengths = sizes[which]
        ends = np.cumsum(lengths)
        at = np.arange(lengths.sum()) + np.repeat(starts[which] - (ends - lengths), lengths)
        return csr_array(
            (np.ones(len(at), np.bool_), flat[at], np.concatenate([[0], ends])), shape=(len(which), 2**63 - 1)
        )

    return np.diff(rows(i).multiply(rows(j)).indptr)
