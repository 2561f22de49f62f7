"""Sharing out what nothing holds yet: by hash alone, or alike within each stratum.

A unit is what must stay together: a group, or groups linked by near-duplicates; its key is its least
group key. Imported by stage programs only: it needs numpy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftaas_pipelines.data.splits.rules import share

TRAIN, VALIDATION, TEST = 0, 1, 2  # places in `SPLITS`
_BLOCK = 100_000


@dataclass(frozen=True)
class Shares:
    """Which part of the records is wanted in validation and in test; the rest is train.

    Attributes:
        frozen: nothing new enters test; what would have is shared out again between the others.
    """

    seed: int
    validation: float
    test: float
    frozen: bool = False


@dataclass(frozen=True)
class Strata:
    """What sharing out alike has to know.

    Attributes:
        names: [strata] uint64, what each stratum's value hashes to.
        of: [units] stratum of each unit (a place in `names`).
        weights: [units] records of each unit.
        placed: [strata, 3] records that are in train, validation and test already.
        held: [strata] groups that are placed already.
    """

    names: Any
    of: Any
    weights: Any
    placed: Any
    held: Any


def ranks(seed: int, keys: Any, wanted: Any) -> Any:
    """[w] float64 in [0, 1): `share` of the wanted ([w] places) of an array of 32 raw bytes each."""

    def shares() -> Iterator[float]:
        for at in range(0, len(wanted), _BLOCK):
            raw = keys[wanted[at : at + _BLOCK]].tobytes()
            yield from (share(seed, raw[i : i + 32].hex()) for i in range(0, len(raw), 32))

    return np.fromiter(shares(), np.float64, len(wanted))


def by_hash(ranks: Any, shares: Shares) -> Any:
    """[units] int8: each unit's split by its own rank, which no other record can change."""
    validation, test = shares.validation, shares.test
    split = np.full(len(ranks), TRAIN, np.int8)
    split[ranks < validation + test] = TEST
    split[ranks < validation] = VALIDATION
    if shares.frozen and test:
        again = (ranks - validation) / test  # where it stands within what would be test: [0, 1)
        split[split == TEST] = np.where(again < validation / (1 - test), VALIDATION, TRAIN)[split == TEST]
    return split


def by_stratum(ranks: Any, strata: Strata, shares: Shares) -> Any:
    """[units] int8: systematic sampling of the new units of each stratum, in the order of their rank.

    A stratum's numbers follow from its own records alone. The point where counting starts is the
    stratum's own share, so that over many small strata the wanted part comes out. A stratum of fewer
    than three units goes to train, and none goes without train.
    """
    validation, test = shares.validation, 0.0 if shares.frozen else shares.test
    starts = np.array([share(shares.seed, f"stratum {name:x}") for name in strata.names.tolist()])
    sizes = np.bincount(strata.of, strata.weights, len(starts))
    records = strata.placed.sum(axis=1) + sizes
    first = np.floor(records * validation + starts)
    second = np.floor(records * (validation + test) + starts) - first
    to_validation = np.maximum(0, first - strata.placed[:, VALIDATION])
    to_test = np.maximum(0, second - strata.placed[:, TEST])
    rare = np.bincount(strata.of, minlength=len(starts)) + strata.held < 3
    to_validation[rare] = to_test[rare] = 0

    order = np.lexsort((ranks, strata.of))
    stratum, weights = strata.of[order], strata.weights[order]
    ends = np.cumsum(weights)
    middle = ends - weights / 2 - (np.cumsum(sizes) - sizes)[stratum]
    split = np.select(
        [middle < to_validation[stratum], middle < (to_validation + to_test)[stratum]],
        [VALIDATION, TEST],
        TRAIN,
    )
    without = (strata.placed[:, TRAIN] == 0) & (sizes > 0)
    split[np.searchsorted(stratum, np.flatnonzero(without), side="right") - 1] = TRAIN
    placed = np.empty(len(order), np.int8)
    placed[order] = split
    return placed
