"""The ledger's head, signed and kept outside the database: how far the chain once reached.

    PLACE/<era>/<thousand>/<seq>-<first 16 of the hash>.json    {"era", "seq", "hash", "at", "signature"}

One object a head, never written twice: a bucket with object lock keeps each for good, and a folder keeps the
newest thousand or two. A head speaks for all entries before it, so one that is missing is no fault. An
**era** ends when a restore accepts, in an entry, that the end of the ledger is lost.
"""

import itertools
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.governance import signing
from ftaas_pipelines.governance.chain import Reading
from ftaas_pipelines.governance.signing import Verifier
from ftaas_pipelines.store import canonical, now

_THOUSAND = 1000
_NAME = re.compile(r"(\d{12})-([0-9a-f]{16})\.json")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Head:
    """The end of the chain at one moment, as this installation signed it."""

    era: int
    seq: int
    hash: str
    at: str
    signature: str = ""

    @property
    def _message(self) -> bytes:
        return canonical({k: v for k, v in asdict(self).items() if k != "signature"})

    @property
    def name(self) -> str:
        return f"{self.era:06d}/{self.seq // _THOUSAND:09d}/{self.seq:012d}-{self.hash[:16]}.json"

    def signed(self, home: Path) -> "Head":
        return Head(self.era, self.seq, self.hash, self.at, signing.sign(home, self._message))

    def holds(self, key: Verifier | None) -> bool:
        return key is not None and key.holds(self._message, self.signature)


@dataclass(frozen=True)
class Mark:
    """What the name of a kept head says."""

    era: int
    seq: int
    start: str
    """First 16 characters of the hash."""


class Shelf(Protocol):
    """Where heads lie: a folder, or an object store."""

    def names(self, folder: str) -> list[str]:
        """What lies directly in a folder, also what was deleted over a locked object; [] when absent."""
        ...

    def read(self, name: str) -> Iterator[bytes]:
        """What was ever written under a name, as far as it is kept."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Write what was never there; leave alone what is."""
        ...


class Folder:
    """Heads in a folder."""

    def __init__(self, root: Path):
        self.root = root

    def names(self, folder: str) -> list[str]:
        try:
            return os.listdir(self.root / folder)
        except FileNotFoundError:
            # An absent folder holds nothing; an absent mount is a place out of reach.
            if self.root.exists() or self.root.parent.exists():
                return []
            raise

    def read(self, name: str) -> Iterator[bytes]:
        yield (self.root / name).read_bytes()

    def put(self, name: str, data: bytes) -> None:
        path = self.root / name
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._let_go(path.parent)
        temporary = path.with_name(f".{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            if not path.exists():
                temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _let_go(self, newest: Path) -> None:
        """Of the thousands of one era a folder keeps the newest two."""
        for old in _numbers(os.listdir(newest.parent)):
            if int(old) < int(newest.name) - 1:
                shutil.rmtree(newest.parent / old, ignore_errors=True)


class Objects:
    """Heads in what fsspec knows; in S3 every version of an object counts, whatever lies over it."""

    def __init__(self, url: str):
        from fsspec.core import url_to_fs  # half a tenth of a second: only where it is used

        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        self._versions = url.startswith(("s3://", "s3a://"))
        if self._versions:
            # A store out of reach must not hold up the work: the next entry catches up.
            patience = {"connect_timeout": 3, "read_timeout": 10, "retries": {"max_attempts": 2}}
            options |= {"version_aware": True, "config_kwargs": patience}
        try:
            self._system, self._root = url_to_fs(url, **options)
        except (ValueError, ImportError) as error:
            raise InputInvalid(
                "this kind of URL is not known here",
                "FTAAS_LEDGER_HEAD",
                type(error).__name__,
                "use a folder, s3:// or another fsspec URL whose library is installed",
            ) from None

    def _listed(self, folder: str) -> list[dict[str, Any]]:
        more = {"versions": True} if self._versions else {}
        try:
            return self._system.ls(f"{self._root}/{folder}".rstrip("/"), detail=True, refresh=True, **more)
        except FileNotFoundError:
            return []

    def names(self, folder: str) -> list[str]:
        plain = (str(info["name"]).partition("?versionId=")[0] for info in self._listed(folder))
        return sorted({name.rstrip("/").rpartition("/")[2] for name in plain})

    def read(self, name: str) -> Iterator[bytes]:
        path = f"{self._root}/{name}"
        if not self._versions:
            yield self._system.cat_file(path)
            return
        for info in self._listed(name.rpartition("/")[0]):
            if str(info["name"]).partition("?versionId=")[0] == path:
                version = None if info.get("VersionId") == "null" else info.get("VersionId")
                # One piece: for several s3fs first asks how long the newest version is, and that may be gone.
                yield self._system.cat_file(path, version_id=version, max_concurrency=1)

    def put(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        if not self._versions:
            self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            if self._system.exists(path):
                return
        self._system.pipe_file(path, data)


class Heads:
    """One place where heads are kept.

    Every method raises what its file system raises when the place is out of reach.
    """

    def __init__(self, place: str | Path):
        self.place = str(place)
        self._shelf: Shelf = Objects(self.place) if "://" in self.place else Folder(Path(place))

    def write(self, head: Head) -> None:
        """Keep a signed head; costs one small file or one PUT."""
        self._shelf.put(head.name, canonical(asdict(head)))

    def newest(self) -> Mark | None:
        """The mark that reaches furthest, or None where nothing is kept yet."""
        return next(self.marks(), None)

    def marks(self) -> Iterator[Mark]:
        """All that is kept, furthest first: one listing for each thousand."""
        for era in _numbers(self._shelf.names("")):
            for thousand in _numbers(self._shelf.names(era)):
                found = (_NAME.fullmatch(n) for n in self._shelf.names(f"{era}/{thousand}"))
                marks = [Mark(int(era), int(m[1]), m[2]) for m in found if m]
                yield from sorted(marks, key=lambda m: m.seq, reverse=True)

    def head(self, mark: Mark, key: Verifier | None) -> Head | None:
        """The head behind a mark; None when this installation did not sign it."""
        for data in self._shelf.read(Head(mark.era, mark.seq, mark.start, "").name):
            try:
                found = Head(**json.loads(data))
                same = (found.era, found.seq, found.hash[:16]) == (mark.era, mark.seq, mark.start)
            except (ValueError, TypeError):
                continue
            if same and found.holds(key):
                return found
        return None


@dataclass(frozen=True)
class Kept:
    """What a place holds at one moment. `error` says why it could not be read."""

    heads: Heads
    marks: list[Mark]
    error: str = ""

    def disagreeing(self, chain: Reading) -> list[Mark]:
        """The marks of entries that the chain does not hold, furthest first."""
        return [mark for mark in self.marks if not _agrees(mark, chain)]

    def contradiction(self, chain: Reading, key: Verifier | None) -> dict[str, Any] | None:
        """The first entry that is not what was exported: `{"seq", "why"}`, or None.

        Call it with a chain that was read after the place was: then no head can be ahead of it.
        """
        against = sorted(self.disagreeing(chain), key=lambda m: m.seq)
        try:
            return self._contradiction(against, chain, key)
        except Exception as error:  # each file system has errors of its own kind
            why = f"{self.heads.place} cannot be read: {type(error).__name__}"
            return {"seq": chain.count + 1, "why": why}

    def _contradiction(
        self, against: Sequence[Mark], chain: Reading, key: Verifier | None
    ) -> dict[str, Any] | None:
        place = self.heads.place
        for mark in against:
            if self.heads.head(mark, key) is None:
                continue
            if mark.seq > chain.count:
                furthest = max(m.seq for m in against)
                why = f"entries up to {furthest} once stood here, says {place}: the tail was cut"
                return {"seq": chain.count + 1, "why": why}
            return {"seq": mark.seq, "why": f"it is not the entry whose head lies in {place}"}
        planted = against or [m for m in self.marks[:1] if self.heads.head(m, key) is None]
        if planted:
            why = f"{place} holds a head of it that this installation did not sign"
            return {"seq": planted[0].seq, "why": why}
        return None


def look(heads: Heads, newest: bool = False) -> Kept:
    """What a place holds now (or the newest of it); one out of reach is told as such."""
    try:
        return Kept(heads, list(itertools.islice(heads.marks(), 1 if newest else None)))
    except Exception as error:  # each file system has errors of its own kind
        return Kept(heads, [], f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def _agrees(mark: Mark, chain: Reading) -> bool:
    if mark.seq <= chain.count and chain.hashes[mark.seq - 1].startswith(mark.start):
        return True
    # The end of an era that is over may have been given up by an entry.
    over = (loss.get("lost", {}) for loss in chain.losses if mark.era < loss.get("era", 0))
    return any(mark.seq <= lost.get(str(mark.era), 0) for lost in over)


def make(era: int, seq: int, hash_: str, home: Path) -> Head:
    """A signed head of now."""
    return Head(era, seq, hash_, now()).signed(home)


def _numbers(names: list[str]) -> list[str]:
    return sorted((n for n in names if _NUMBER.fullmatch(n)), key=int, reverse=True)
