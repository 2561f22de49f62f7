"""The rules of splits that need no data: their names, a key's share, what anchors hold for, what is too few.

How records are placed is in `placement`, how they are read and written in `splitting`.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from ftaas_pipelines.errors import Problem
from ftaas_pipelines.projects.dataset import Splits

SPLITS = ("train", "validation", "test")
LEAST_TRAIN = 8
_PLACES_RECORDS = ("seed", "validation", "test", "group_by", "stratify_by")


def share(seed: int, key: str) -> float:
    """A number in [0, 1) that is the key's own for ever."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{key}".encode()).digest()[:8]) / 2**64


def same_freeze(before: Mapping[str, Any], options: Splits) -> bool:
    """Whether earlier options froze the test split that these options name."""
    return options.freeze is not None and before.get("freeze") == options.freeze


def grow_from(before: Mapping[str, Any], options: Splits, declared: Mapping[str, str | None]) -> bool:
    """Whether splits under these options keep to the places of earlier splits.

    They do while nothing that places records was changed by hand: neither an option nor what a source
    is declared to be. A frozen test split is kept for as long as it has its name.

    Args:
        before: content of the earlier splits.
        declared: the split that each source of the project is declared to be.
    """
    if same_freeze(before["options"], options):
        return True
    now = options.model_dump(mode="json")
    was: dict[str, str | None] = before.get("declared", {})
    return all(before["options"].get(name) == now[name] for name in _PLACES_RECORDS) and all(
        declared[source] == split for source, split in was.items() if source in declared
    )


def shortage(counts: Mapping[str, int], options: Splits, where: str) -> list[Problem]:
    """A problem for each split that has fewer records than training and evaluation need."""
    least = {"train": LEAST_TRAIN, "validation": 1 if options.validation > 0 else 0, "test": 1}
    got = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
    return [
        Problem(
            f"{split} needs at least {n} {'record' if n == 1 else 'records'}, and has {counts[split]}",
            where,
            got,
            "add rows"
            if split == "train"
            else f"add rows, raise splits.{split}, or give a source split: {split}",
        )
        for split, n in least.items()
        if counts[split] < n
    ]
