"""The folder of an inference log: its files, its locks, and how several files change as one. Light.

spool/<name>.jsonl                   rows as they come, a JSON line each; locked by the process that writes it
answered/day=2026-11-28/*.parquet    the same rows, sorted by id; `feedback/` likewise
making/                              Parquet files that are not finished
change                               which files come and which go, while that is being done
erasures.jsonl                       whose texts are erased, up to when
upkeep.lock                          held by the one who makes Parquet files of others
change.lock                          held while files come and go; shared by readers while they open them

A row is in exactly one file at any moment at which a reader may look (`still`), also when a process
dies between two steps: the next one to come carries out the change that it finds written down.
"""

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

Kind = Literal["answered", "feedback"]
KINDS: tuple[Kind, ...] = ("answered", "feedback")
TEXTS: dict[Kind, tuple[str, ...]] = {"answered": ("prompt", "answer"), "feedback": ("correction", "comment")}
"""The columns that an erasure empties."""


@dataclass(frozen=True)
class Erasure:
    """Texts of a caller, or of answers by id, are erased from what came up to `at` (UTC s)."""

    at: float
    caller: str = ""
    ids: tuple[str, ...] = ()

    def covers(self, row: Mapping[str, Any]) -> bool:
        mine = (self.caller and row.get("caller") == self.caller) or row.get("id") in self.ids
        return bool(mine) and (row.get("at") or 0.0) <= self.at


def day_of(at: float | None) -> str:
    """The UTC day of a time, as folders are named after it; today, where that is no time."""
    try:
        return time.strftime("%Y-%m-%d", time.gmtime(at))
    except (OverflowError, ValueError, OSError):
        return time.strftime("%Y-%m-%d", time.gmtime())


class AnswerFolder:
    """The files of one environment's inference log."""

    def __init__(self, path: Path):
        self.path = path
        self.spool = path / "spool"
        self.making = path / "making"
        self.orders = path / "erasures.jsonl"
        self._change = path / "change"

    # -- what is there -----------------------------------------------------------------------

    def spools(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.spool.glob("[!.]*.jsonl"))

    def days(self, kind: Kind) -> list[tuple[str, list[Path]]]:
        """The Parquet files of each day, newest day first."""
        folders = sorted((self.path / kind).glob("day=*"), reverse=True)
        return [(folder.name.removeprefix("day="), sorted(folder.glob("*.parquet"))) for folder in folders]

    def new_file(self, kind: Kind, day: str) -> tuple[Path, Path]:
        """Where to make a Parquet file, and where it belongs."""
        name = f"{uuid.uuid4().hex}.parquet"
        return self.making / name, self.path / kind / f"day={day}" / name

    def erasures(self) -> list[Erasure]:
        with contextlib.suppress(FileNotFoundError):
            return [
                Erasure(one["at"], one["caller"], tuple(one["ids"]))
                for one in map(orjson.loads, self.orders.read_bytes().splitlines())
            ]
        return []

    # -- spools ------------------------------------------------------------------------------

    def open_spool(self) -> int:
        """A new spool file, locked until its descriptor is closed or the process is gone.

        Raises:
            OSError: the disk is full, say.
        """
        self.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.spool / f"{time.time_ns()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        hidden = path.with_name(f".{path.name}")  # until it is locked: nobody may take it for a finished one
        descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            hidden.rename(path)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def sealed(self, spool: Path) -> bool:
        """Whether nobody writes it any more."""
        try:
            descriptor = os.open(spool, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)

    def rows(
        self,
        spool: bytes,
        erasures: Sequence[Erasure],
        needle: bytes = b"",
        unreadable: Callable[[bytes], None] | None = None,
    ) -> Iterator[tuple[Kind, dict[str, Any]]]:
        """The rows of a spool file's bytes, with erasures applied; a torn line is none.

        Args:
            needle: only lines that hold these bytes.
        """
        for line in spool.split(b"\n"):
            if not line or needle not in line:
                continue
            try:
                ((kind, row),) = orjson.loads(line).items()
                if kind not in KINDS or not isinstance(row["id"], str):
                    raise ValueError
            except (ValueError, KeyError, TypeError, AttributeError):
                if unreadable:
                    unreadable(line)
                continue
            yield kind, _erased(kind, row, erasures)

    # -- changing ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def upkeep(self) -> Iterator[None]:
        """Be the one who may change Parquet files; what a killed predecessor began is carried out first.

        Raises:
            OSError: the disk is full, say.
        """
        self.making.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(self.path / "upkeep.lock", fcntl.LOCK_EX):
            with _locked(self.path / "change.lock", fcntl.LOCK_EX):
                self._carry_out()
            for left in self.making.iterdir():  # half written by somebody who was killed
                left.unlink()
            yield

    def change(self, make: Sequence[tuple[Path, Path]], drop: Sequence[Path]) -> None:
        """Let finished files come and others go: for readers at once, and for good. Within `upkeep`.

        Raises:
            OSError: nothing was changed, or the rest will be by the next one to look.
        """
        plan = {
            "make": [[str(p.relative_to(self.path)) for p in pair] for pair in make],
            "drop": [str(p.relative_to(self.path)) for p in drop],
        }
        with _locked(self.path / "change.lock", fcntl.LOCK_EX):
            write_whole(self._change, orjson.dumps(plan))
            self._carry_out()

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """No Parquet file or sealed spool comes or goes meanwhile: the time to open them."""
        if not self.path.is_dir():
            yield
            return
        while True:
            with _locked(self.path / "change.lock", fcntl.LOCK_SH):
                if not self._change.exists():
                    yield
                    return
            with _locked(self.path / "change.lock", fcntl.LOCK_EX):
                self._carry_out()

    def _carry_out(self) -> None:
        if not self._change.exists():
            return
        plan = orjson.loads(self._change.read_bytes())
        folders: set[Path] = set()
        for made, target in ((self.path / a, self.path / b) for a, b in plan["make"]):
            if made.exists():  # else it was moved before
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                made.replace(target)
            folders |= {target.parent, target.parent.parent, self.path}
        for folder in folders:
            sync(folder)
        for gone in (self.path / name for name in plan["drop"]):
            gone.unlink(missing_ok=True)
            if gone.parent.name.startswith("day="):
                with contextlib.suppress(OSError):  # not empty yet
                    gone.parent.rmdir()
        self._change.unlink()


def _erased(kind: Kind, row: dict[str, Any], erasures: Sequence[Erasure]) -> dict[str, Any]:
    if not any(row.get(name) for name in TEXTS[kind]):
        return row
    for one in erasures:
        if one.covers(row):
            return row | dict.fromkeys(TEXTS[kind]) | {"erased_at": one.at}
    return row


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a small file, whole or not at all, also in a power cut."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(hidden, "wb", opener=lambda p, flags: os.open(p, flags, 0o600)) as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)
    sync(path.parent)


def order_line(order: Erasure) -> bytes:
    """An erasure as `erasures.jsonl` holds it."""
    return orjson.dumps(asdict(order)) + b"\n"
