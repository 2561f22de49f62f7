"""Beginnings that many prompts of an adapter share (a system prompt), read once instead of with every prompt.

Which they are shows by itself: what a prompt has in common with an earlier one, where that is long enough to
pay. Their keys and values depend on the adapter, so each has its own.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor  # noqa: TID253

SHORTEST = 64  # tokens; below it a copy costs as much as it saves
_RECENT = 16  # prompts that a new one is compared with
_BETTER = 16  # tokens that a longer beginning must save to be kept as well

Layer = tuple[Tensor, Tensor]  # keys and values, [heads, tokens, size]


@dataclass(frozen=True, eq=False)
class Prefix:
    """The beginning of prompts, as the model has read it."""

    tokens: tuple[int, ...]
    layers: list[Layer]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(part.numel() * part.element_size() for layer in self.layers for part in layer)


class Prefixes:
    """The beginnings in memory; the least recently used leave beyond the limit.

    Args:
        limit: bytes; 0: nothing is kept.
    """

    def __init__(self, limit: int = 0):
        self._limit = limit
        self._held: OrderedDict[tuple[str | None, tuple[int, ...]], Prefix] = OrderedDict()
        self._recent: deque[tuple[str | None, list[int]]] = deque(maxlen=_RECENT)
        self._bytes = 0

    def find(self, adapter: str | None, prompt: Sequence[int]) -> Prefix | None:
        """The longest beginning of a prompt that has been read; at least one token is left to read."""
        best: tuple[str | None, tuple[int, ...]] | None = None
        for key in self._held:
            longer = best is None or len(key[1]) > len(best[1])
            if longer and key[0] == adapter and len(key[1]) < len(prompt):
                if tuple(prompt[: len(key[1])]) == key[1]:
                    best = key
        if best is None:
            return None
        self._held.move_to_end(best)
        return self._held[best]

    def worth(self, adapter: str | None, prompt: list[int]) -> int:
        """How many first tokens of a prompt are worth keeping, now that it has come; 0: none."""
        if not self._limit:
            return 0
        found = self.find(adapter, prompt)
        known = len(found.tokens) if found else 0
        common = max((_common(prompt, other) for name, other in self._recent if name == adapter), default=0)
        self._recent.append((adapter, prompt))
        common = min(common, len(prompt) - 1)
        return common if common >= max(SHORTEST, known + _BETTER) else 0

    def keep(self, adapter: str | None, tokens: Sequence[int], layers: list[Layer]) -> None:
        prefix = Prefix(tuple(tokens), layers)
        key = adapter, prefix.tokens
        if key in self._held or prefix.size > self._limit:
            return
        self._held[key] = prefix
        self._bytes += prefix.size
        while self._bytes > self._limit:
            self._bytes -= self._held.popitem(last=False)[1].size

    def forget(self, adapter: str | None) -> None:
        """An adapter has left."""
        for key in [key for key in self._held if key[0] == adapter]:
            self._bytes -= self._held.pop(key).size
        kept = [(name, prompt) for name, prompt in self._recent if name != adapter]
        self._recent.clear()
        self._recent.extend(kept)


def _common(one: list[int], other: list[int]) -> int:
    """How many first tokens two prompts share."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
