"""Which split each record is in: what was placed stays, what belongs together stays together.

1. A group keeps the split it had; a new one takes the split its records' source is declared to be.
2. Where near-duplicates link two splits, the record that came last is left out; nothing moves.
3. Groups that nothing holds yet join those they are linked to, in the order of their keys, and a group
   that would join two splits is left out where it touches the other one.
4. What is still free is shared out (`sharing`).

The order of files and buckets has no say: records come sorted by record_id, groups by their key.
Imported by stage programs only: it needs numpy.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np

from ftaas_pipelines.data.splits import sharing
from ftaas_pipelines.data.splits.rules import SPLITS
from ftaas_pipelines.data.splits.sharing import TEST, TRAIN, VALIDATION, Shares, Strata
from ftaas_pipelines.projects.dataset import Splits

NONE, CHALLENGE = -1, 3
_BLOCK = 100_000
REASONS = ("bridges_splits", "also_in_test", "test_is_frozen", "synthetic_in_test", "too_synthetic")
_BRIDGES, _ALSO_IN_TEST, _TEST_IS_FROZEN, _SYNTHETIC_IN_TEST, _TOO_SYNTHETIC = range(len(REASONS))


@dataclass(frozen=True)
class Keys:
    """What placing has to know of the records: n rows in g groups.

    Attributes:
        record_ids: [n] S32, ascending.
        group_keys: [g] S32, ascending.
        groups: [n] each record's group, a place in `group_keys`.
        declared: [n] int8, place in `SPLITS` of what its source is declared to be, CHALLENGE or NONE.
        synthetic: [n] bool.
        edges: [e, 2] near-duplicate records.
        strata: [n] uint64, hash of the value to stratify by; None where nothing is asked.
    """

    record_ids: Any
    group_keys: Any
    groups: Any
    declared: Any
    synthetic: Any
    edges: Any
    strata: Any = None


@dataclass(frozen=True)
class Before:
    """Where the earlier splits have it.

    Attributes:
        groups: [g] int8, split of a group or NONE.
        records: [n] int8, split of a record or NONE.
        frozen: its test split is frozen under the name that is asked for.
    """

    groups: Any
    records: Any
    frozen: bool = False


@dataclass(frozen=True)
class Placement:
    """Where it is now.

    Attributes:
        groups: [g] int8, split of a group that is placed or was; NONE for the others.
        records: [n] int8, split, CHALLENGE, or NONE where the record is left out.
        reasons: [n] int8, place in `REASONS` where the record is left out.
    """

    groups: Any
    records: Any
    reasons: Any


def place(keys: Keys, options: Splits, before: Before) -> Placement:
    """Place every record; the same records, options and earlier splits give the same places."""
    work = _Placing(keys, options, before)
    work.hold()
    work.part()
    made = work.groups_with(work.made)
    pure = made & ~work.groups_with(work.takes_part & ~work.made) & (work.label == NONE)
    work.join((work.label == NONE) & ~pure, NONE)
    work.settle(made & ~pure, TRAIN)
    work.join(pure, TRAIN)
    work.settle(pure, TRAIN)
    work.share_out()
    work.limit_synthetic()
    return work.placement()


class _Placing:
    def __init__(self, keys: Keys, options: Splits, before: Before):
        self.keys, self.options, self.before = keys, options, before
        self.label = before.groups.copy()
        self.reasons = np.full(len(keys.groups), NONE, np.int8)
        self.takes_part = keys.declared != CHALLENGE
        self.new = before.records == NONE
        # What may not stand in test is placed apart; where it may, a synthetic record is like any other.
        self.made = keys.synthetic & self.takes_part & (not options.synthetic_in_test)
        # Union-find over the linked groups that nothing held at first; NONE for every other group.
        self.root = array("q", [NONE]) * len(self.label)
        self.label_of_root = array("b", [NONE]) * len(self.label)

    def groups_with(self, rows: Any) -> Any:
        """[g] bool: which groups have a record among these rows."""
        found = np.zeros(len(self.label), bool)
        found[self.keys.groups[rows]] = True
        return found

    # -- what holds a group ------------------------------------------------------------------

    def hold(self) -> None:
        """Label the groups that the earlier splits or a source name; leave out what contradicts them."""
        keys, groups, was = self.keys, self.keys.groups, self.before.records
        if self.before.frozen:
            fresh_test = self.new & (keys.declared == TEST)
            self.reasons[fresh_test & (self.label[groups] != TEST)] = _TEST_IS_FROZEN
        free = self.takes_part & (self.label[groups] == NONE) & (self.reasons == NONE)
        for named in (keys.declared, was):  # the latter goes before the former, and test before train
            for split in (TRAIN, VALIDATION, TEST):
                self.label[groups[free & (named == split)]] = split
        settled = (self.before.groups != NONE) | self.groups_with(self.takes_part & ~self.new)
        here = self.label[groups]
        moved = ~self.new & (was != here)
        contradicts = self.new & settled[groups] & (keys.declared != NONE) & (keys.declared != here)
        open_ = self.takes_part & (self.reasons == NONE)
        self.reasons[open_ & (moved | contradicts)] = _BRIDGES
        if self.before.frozen:
            self.reasons[self.takes_part & self.new & (here == TEST)] = _ALSO_IN_TEST
        self._leave_out_made_in_test()  # now, or another record would go for the sake of one that goes

    def _leave_out_made_in_test(self) -> None:
        standing = self.takes_part & (self.reasons == NONE) & ~(self.before.frozen & ~self.new)
        in_test = self.label[self.keys.groups] == TEST
        self.reasons[standing & self.made & in_test] = _SYNTHETIC_IN_TEST

    def part(self) -> None:
        """Leave out the record that came last of each pair that stands in two splits.

        Of two that came together the one in test stays before the one in validation, before train.
        """
        strength = np.where(self.new, 0, len(SPLITS)) + self.label[self.keys.groups]
        edges = self._edges()
        label = self.label[self.keys.groups[edges]]
        clash = (label[:, 0] != label[:, 1]) & (label != NONE).all(axis=1)
        if self.before.frozen:  # near a frozen test record even what nothing holds has to go
            clash |= (label == TEST).any(axis=1) & (label == NONE).any(axis=1)
        pairs = edges[clash]
        stays = strength[pairs].argmax(axis=1)
        at = np.arange(len(pairs))
        staying, going = pairs[at, stays], pairs[at, 1 - stays]
        order = np.lexsort((going, staying, -strength[staying]))
        for stay, go in zip(staying[order].tolist(), going[order].tolist(), strict=True):
            if self.reasons[stay] == NONE and self.reasons[go] == NONE:
                beside_test = self.before.frozen and self.label[self.keys.groups[stay]] == TEST
                self._leave_out(go, _ALSO_IN_TEST if beside_test else _BRIDGES)

    def _edges(self) -> Any:
        """[e, 2] pairs of records that both still take part, in different groups."""
        edges = self.keys.edges
        groups = self.keys.groups[edges]
        stands = (self.takes_part & (self.reasons == NONE))[edges].all(axis=1)
        return edges[stands & (groups[:, 0] != groups[:, 1])]

    def _leave_out(self, row: int, reason: int) -> None:
        """Leave out a record and, where groups are prompts, all of its group that came with it."""
        rows: Any = [row]
        if self.options.group_by is None:
            by_group, starts = self._rows_by_group
            group = self.keys.groups[row]
            rows = by_group[starts[group] : starts[group + 1]]
            rows = rows[
                self.takes_part[rows] & (self.new[rows] == self.new[row]) & (self.reasons[rows] == NONE)
            ]
        self.reasons[rows] = reason

    @cached_property
    def _rows_by_group(self) -> tuple[Any, Any]:
        rows = np.argsort(self.keys.groups, kind="stable")
        return rows, np.searchsorted(self.keys.groups[rows], np.arange(len(self.label) + 1))

    # -- what is linked to it ----------------------------------------------------------------

    def join(self, chosen: Any, own: int) -> None:
        """Join each chosen group ([g] bool) to what it is linked to, in the order of the group keys.

        A group that meets two splits keeps `own`, or else the one that costs it the fewest records, and
        leaves out the records that touch another.
        """
        groups = self.keys.groups
        edges = self._edges()
        ends = np.concatenate([edges, edges[:, ::-1]])
        ends = ends[chosen[groups[ends[:, 0]]]]
        ends = ends[np.lexsort((ends[:, 1], ends[:, 0], groups[ends[:, 0]]))]
        links = _rows(np.column_stack([groups[ends], ends]))
        for group, linked in groupby(links, key=lambda link: link[0]):
            self._join(group, [(row, other, of) for _, of, row, other in linked], own)

    def _join(self, group: int, links: list[tuple[int, int, int]], own: int) -> None:
        touching: dict[int, set[int]] = defaultdict(set)
        for row, other, of in links:
            split = self._label(of)
            if split != NONE and self.reasons[other] == NONE:
                touching[split].add(row)
        kept = own
        if kept == NONE and touching:
            kept = max(touching, key=lambda split: (len(touching[split]), -split))
        for split in touching.keys() - {kept}:
            for row in touching[split]:
                if self.reasons[row] == NONE:
                    self._leave_out(row, _BRIDGES)
        self.root[group], self.label_of_root[group] = group, kept
        for row, other, of in links:
            if self.root[of] != NONE and self.reasons[row] == NONE and self.reasons[other] == NONE:
                self._unite(group, of)

    def _label(self, group: int) -> int:
        """The split that holds a group so far."""
        if self.root[group] == NONE:
            return int(self.label[group])
        return self.label_of_root[self._find(group)]

    def _find(self, group: int) -> int:
        while self.root[group] != group:
            self.root[group] = group = self.root[self.root[group]]
        return group

    def _unite(self, one: int, other: int) -> None:
        first, second = sorted((self._find(one), self._find(other)))
        if first != second:
            self.root[second] = first
            held = self.label_of_root[second]
            if held != NONE:
                self.label_of_root[first] = held

    def settle(self, chosen: Any, split: int) -> None:
        """Put the chosen groups ([g] bool), with what is linked to them, in a split if nothing holds them."""
        for group in np.flatnonzero(chosen & self._linked).tolist():
            if self._label(group) == NONE:
                self.label_of_root[self._find(group)] = split
        self.label[chosen & (self.label == NONE) & ~self._linked] = split

    @property
    def _linked(self) -> Any:
        """[g] bool: which groups are in the union-find."""
        return np.frombuffer(self.root, np.int64) != NONE

    # -- what is free -------------------------------------------------------------------------

    def share_out(self) -> None:
        """Give each unit (linked groups, or one group alone) that nothing holds a split of its own."""
        declared = self.keys.declared
        unit = np.arange(len(self.label))
        for group in np.flatnonzero(self._linked).tolist():
            unit[group] = root = self._find(group)
            self.label[group] = self.label_of_root[root]
        taking = self.takes_part & (self.reasons == NONE)
        live = self.groups_with(taking)
        free = live & (self.label == NONE)
        units = np.unique(unit[free])
        shares = Shares(
            seed=self.options.seed,
            # A share is ignored where a source is already that split.
            validation=0.0 if (declared == VALIDATION).any() else self.options.validation,
            test=0.0 if (declared == TEST).any() else self.options.test,
            frozen=self.before.frozen,
        )
        at = sharing.ranks(shares.seed, self.keys.group_keys, units)
        if self.keys.strata is None:
            split = sharing.by_hash(at, shares)
        else:
            split = sharing.by_stratum(at, self._strata(unit, units, taking), shares)
        self.label[free] = split[np.searchsorted(units, unit[free])]
        self.label[~live] = self.before.groups[~live]  # an anchor outlives its records

    def _strata(self, unit: Any, units: Any, taking: Any) -> Strata:
        """A unit is of the stratum that most of its records are of; of equals the least."""
        names, stratum = np.unique(self.keys.strata, return_inverse=True)
        group = self.keys.groups
        free = taking & (self.label[group] == NONE)
        number = np.searchsorted(units, unit[group[free]])
        pairs, counts = np.unique(number * len(names) + stratum[free], return_counts=True)
        order = np.lexsort((pairs, -counts, pairs // len(names)))
        most = order[np.unique(pairs[order] // len(names), return_index=True)[1]]
        held = taking & ~free
        of_held = np.unique(group[held] * len(names) + stratum[held]) % len(names)
        placed = np.bincount(stratum[held] * 3 + self.label[group[held]], minlength=3 * len(names))
        return Strata(
            names=names,
            of=pairs[most] % len(names),
            weights=np.bincount(number, minlength=len(units)).astype(np.float64),
            placed=placed.reshape(-1, 3),
            held=np.bincount(of_held, minlength=len(names)),
        )

    # -- what is made by models ----------------------------------------------------------------

    def limit_synthetic(self) -> None:
        """Leave out synthetic records that stand in test, or are too many of train."""
        self._leave_out_made_in_test()  # of groups that came into test since
        split = self.label[self.keys.groups]
        standing = self.takes_part & (self.reasons == NONE)
        most = self.options.max_synthetic
        in_train = standing & (split == TRAIN)
        made = np.flatnonzero(in_train & self.keys.synthetic)
        if most < 1 and len(made):
            allowed = int(most * (in_train.sum() - len(made)) / (1 - most) + 1e-9)
            order = np.argsort(sharing.ranks(self.options.seed, self.keys.record_ids, made), kind="stable")
            self.reasons[made[order[allowed:]]] = _TOO_SYNTHETIC

    def placement(self) -> Placement:
        records = np.where(self.takes_part, self.label[self.keys.groups], CHALLENGE).astype(np.int8)
        records[self.reasons != NONE] = NONE
        return Placement(self.label, records, self.reasons)


def _rows(table: Any) -> Iterator[list[int]]:
    """The rows of a table of whole numbers, a block at a time in Python's own."""
    for at in range(0, len(table), _BLOCK):
        yield from table[at : at + _BLOCK].tolist()
