"""Rows that say exactly the same, and the groups that pairs make."""

import numpy as np
from numpy.typing import NDArray


def exact(
    content: NDArray[np.uint64],
    precedence: NDArray[np.uint8],
    source: NDArray[np.int32],
    row: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Which rows stay: of those with equal content the least (precedence, source, row), else the first.

    Args:
        content: [n, 2] the first 16 bytes of each row's content_id.
        precedence: [n] of its declared split; the least goes first.
        source: [n] rank of its source's digest among the sorted digests.
        row: [n] where it stands in its source.
    """
    kept = np.ones(len(content), np.bool_)
    again = np.sort(repeated(content[:, 0]))
    kept[again] = False
    order = again[
        np.lexsort((row[again], source[again], precedence[again], content[again, 1], content[again, 0]))
    ]
    first = np.ones(len(order), np.bool_)
    first[1:] = (content[order[1:]] != content[order[:-1]]).any(axis=1)
    kept[order[first]] = True
    return kept


def repeated(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Positions of the values that stand there more than once, equal ones beside each other."""
    order = np.argsort(values)
    ordered = values[order]
    equal = ordered[1:] == ordered[:-1]
    twice = np.zeros(len(values), np.bool_)
    twice[1:] = equal
    twice[:-1] |= equal
    return order[twice]


def components(n: int, i: NDArray[np.int32], j: NDArray[np.int32]) -> NDArray[np.int32]:
    """The group of each of n items, told by its least member, when i[k] and j[k] belong together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    joined = coo_array((np.ones(len(i), np.bool_), (i, j)), shape=(n, n))
    _, labels = connected_components(joined, directed=False)
    _, least = np.unique(labels, return_index=True)
    return least[labels].astype(np.int32)
