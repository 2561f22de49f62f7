"""Which ways out of the platform fail, since when, and when they are tried again: FTAAS_HOME/outbox.json.

Kept in a file: the daemon that failed may be gone when `ftaas doctor` is asked.
"""

import contextlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

_FIRST = timedelta(minutes=1)
_LONGEST = timedelta(hours=1)


@dataclass(frozen=True)
class Failing:
    """A way that failed `times` in a row; `why` names the setting, never its value."""

    times: int
    since: str
    again: str
    why: str


class Backoff:
    """The failing ways of one home, by name: `mail`, `webhook`, or `mail to` one address."""

    def __init__(self, home: Path):
        self._path = home / "outbox.json"
        self._ways: dict[str, Failing] = {}
        # Lost or unreadable, it only means that everything is tried again.
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            found = json.loads(self._path.read_text("utf-8"))
            self._ways = {way: Failing(**facts) for way, facts in found.items()}

    def __iter__(self) -> Iterator[tuple[str, Failing]]:
        return iter(sorted(self._ways.items()))

    def waits(self, way: str, now: datetime) -> bool:
        """Whether it is too early to try this way again."""
        known = self._ways.get(way)
        if known is None:
            return False
        # Further away than the longest wait: the clock was ahead when that was written.
        return now < datetime.fromisoformat(known.again) <= now + _LONGEST

    def failed(self, way: str, why: str, now: datetime) -> None:
        before = self._ways.get(way)
        times = before.times + 1 if before else 1
        wait = min(_FIRST * 2 ** min(times - 1, 10), _LONGEST)
        since = before.since if before else now.isoformat()
        self._ways[way] = Failing(times, since, (now + wait).isoformat(), why)
        self._write()

    def worked(self, way: str) -> None:
        if self._ways.pop(way, None):
            self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
        temporary.write_text(json.dumps({way: asdict(f) for way, f in self._ways.items()}), encoding="utf-8")
        temporary.replace(self._path)
