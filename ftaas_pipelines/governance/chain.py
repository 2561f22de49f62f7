"""Whether a chain of entries holds: number, place, hash and signature of each."""

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ftaas_pipelines.governance.entry import GENESIS, LOSS, Row
from ftaas_pipelines.governance.signing import Verifier

_CHUNK = 1000


@dataclass(frozen=True)
class Verification:
    """The result of reading the whole chain. `first_bad` is `{"seq", "why"}` or None.

    Attributes:
        entries, head: how many and the last hash; as of the date where one was asked for.
        warnings: what does not break the chain and should be seen to.
    """

    ok: bool
    entries: int
    head: str
    first_bad: dict[str, Any] | None
    warnings: list[str] = field(default_factory=list[str])


@dataclass
class Reading:
    """What one pass over the entries found.

    Attributes:
        count: how many there are.
        head: hash of the last.
        hashes: the hash at each seq, index 0 being seq 1.
        losses: bodies of the entries that accepted a loss, in order.
        first_bad: `{"seq", "why"}` of the first that does not hold, or None.
        then: count and head as they were at the asked date.
    """

    count: int = 0
    head: str = GENESIS
    hashes: list[str] = field(default_factory=list[str])
    losses: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    first_bad: dict[str, Any] | None = None
    then: tuple[int, str] = (0, GENESIS)

    @property
    def era(self) -> int:
        """1, and another after each accepted loss."""
        return int(self.losses[-1].get("era", 1)) if self.losses else 1


def read(rows: Iterable[Row], key: Verifier | None, until: str | None = None) -> Reading:
    """Check every entry: number, place in the chain, hash, signature.

    Signatures cost most and leave Python while they are checked: threads share them.

    Args:
        key: whose signatures hold; None where the installation has no key, so that none does.
        until: also count what had been written by then (`at`, inclusive by prefix).
    """
    found = Reading()
    pending: deque[Future[dict[str, Any] | None]] = deque()
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for chunk in _chunks(rows):
            if found.first_bad is None:
                pending.append(pool.submit(_chunk_fault, chunk, found.count + 1, found.head, key))
            for row in chunk:
                found.hashes.append(row.hash)
                if row.kind == LOSS:
                    found.losses.append(_parsed(row))
            found.count, found.head = found.count + len(chunk), chunk[-1].hash
            if until is not None:
                early = [row for row in chunk if str(row.at) <= until + "~"]
                found.then = (found.then[0] + len(early), early[-1].hash if early else found.then[1])
            while len(pending) > 16:
                found.first_bad = found.first_bad or pending.popleft().result()
        for future in pending:
            found.first_bad = found.first_bad or future.result()
    return found


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _chunk_fault(
    rows: Sequence[Row], expected: int, prev: str, key: Verifier | None
) -> dict[str, Any] | None:
    for row in rows:
        why = row.fault(expected, prev, key)
        if why:
            return {"seq": min(row.seq, expected), "why": why}
        expected, prev = expected + 1, row.hash
    return None


def _parsed(row: Row) -> dict[str, Any]:
    try:
        return json.loads(row.body)
    except (TypeError, ValueError):
        return {}  # the chain does not hold there anyway
