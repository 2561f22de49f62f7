"""Which split a record is in: by hash of its group, so that growth moves nothing that was there.

Records of one group never part. A declared split holds for the whole group; the others are shared
out by sha256 of (seed, group), which no other record can change.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ftaas_pipelines.errors import Problem
from ftaas_pipelines.projects.project import Splits

SPLITS = ("train", "validation", "test")
LEAST_TRAIN = 8
_DECLARED = ("test", "validation", "train")  # the first that a group's records name holds


@dataclass(frozen=True)
class Member:
    """What sharing out needs to know of a record."""

    record_id: str
    group: str
    normal_prompt: str
    declared_split: str | None


def share(seed: int, group: str) -> float:
    """A number in [0, 1) that is the group's own for ever."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{group}".encode()).digest()[:8]) / 2**64


def assign(members: Iterable[Member], options: Splits) -> dict[str, str]:
    """The split of each group. Challenge records take no part.

    A share is ignored where a source is already that split.
    """
    declared: dict[str, set[str | None]] = defaultdict(set)
    for member in members:
        if member.declared_split != "challenge":
            declared[member.group].add(member.declared_split)
    named = {split for splits in declared.values() for split in splits}
    validation = 0.0 if "validation" in named else options.validation
    test = 0.0 if "test" in named else options.test

    def split_of(group: str) -> str:
        held = next((split for split in _DECLARED if split in declared[group]), None)
        if held:
            return held
        at = share(options.seed, group)
        return "validation" if at < validation else "test" if at < validation + test else "train"

    return {group: split_of(group) for group in sorted(declared)}


def leakage(members: Iterable[Member], split_of: Mapping[str, str]) -> dict[str, int]:
    """Groups and normalised prompts that stand in more than one split."""
    groups: dict[str, set[str]] = defaultdict(set)
    prompts: dict[str, set[str]] = defaultdict(set)
    for member in members:
        if member.declared_split != "challenge":
            groups[member.group].add(split_of[member.group])
            prompts[member.normal_prompt].add(split_of[member.group])
    return {
        "shared_groups": sum(len(splits) > 1 for splits in groups.values()),
        "shared_prompts": sum(len(splits) > 1 for splits in prompts.values()),
    }


def shortage(counts: Counter[str], options: Splits, where: str) -> list[Problem]:
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
