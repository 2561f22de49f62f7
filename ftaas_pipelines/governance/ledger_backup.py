"""A copy of the ledger in one signed file, and the way back.

    {"ledger_backup": 1, "at", "key"}                           what it is, and the public key
    {"seq": 1, "at", "kind", … "signature"}                     every entry, as `ftaas ledger export` has it
    {"entries", "head", "sha256", "signature"}                  over all bytes before: the file is whole

JSON lines, packed with Zstandard. The file never holds the signing key: keep that elsewhere.
"""

import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ftaas_pipelines.errors import FtaasError, InputInvalid, Refused
from ftaas_pipelines.governance import chain, signing
from ftaas_pipelines.governance.chain import Reading
from ftaas_pipelines.governance.entry import LOSS, Entry, New, Row
from ftaas_pipelines.governance.heads import Kept, look
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.governance.ledger_schema import ENTRIES
from ftaas_pipelines.governance.signing import Verifier
from ftaas_pipelines.store import canonical, file_digest, now

_VERSION = 1
_BATCH = 1000


@dataclass(frozen=True)
class Backup:
    """What a backup file holds; `sha256` is of the file."""

    file: str
    sha256: str
    entries: int
    head: str


def write(ledger: Ledger, path: Path) -> Backup:
    """Copy the whole ledger of one moment into a file that was not there before; whole or nothing.

    Raises:
        InputInvalid: the file exists.
        FtaasError: the ledger does not hold; a copy of that would be of no use.
    """
    import zstandard

    if path.exists():
        raise InputInvalid("is there already", "--to", str(path), "name a new file")
    path.parent.mkdir(parents=True, exist_ok=True)
    key = signing.verifier(ledger.home)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    digest = hashlib.sha256()
    try:
        with temporary.open("xb") as raw:
            with zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as packed:

                def line(document: Any) -> None:
                    data = canonical(document) + b"\n"
                    digest.update(data)
                    packed.write(data)

                line({"ledger_backup": _VERSION, "at": now(), "key": key.pem if key else ""})
                found = ledger.verify(seen=lambda row: line(_document(row)))
                if not found.ok:
                    raise FtaasError(
                        "the ledger does not hold, so it cannot be backed up",
                        got=str(found.first_bad),
                        do="copy the database itself as evidence; see `ftaas ledger verify`",
                    )
                end = {"entries": found.entries, "head": found.head, "sha256": digest.hexdigest()}
                line({**end, "signature": signing.sign(ledger.home, canonical(end))})
            raw.flush()
            os.fsync(raw.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    return Backup(str(path), file_digest(path), found.entries, found.head)


def restore(ledger: Ledger, path: Path, *, by: str, accept_loss: str = "") -> Entry:
    """Bring back what a backup holds, in one transaction; returns the entry that says so.

    Args:
        ledger: empty, or ending somewhere in the backup.
        by: who restores.
        accept_loss: why it is right to go on although entries after the backup are lost.

    Raises:
        InputInvalid: the file is no backup.
        Refused: it does not verify, does not continue this ledger, or ends before the exported head.
    """
    places = [look(place) for place in ledger.places]  # before the file: none can be ahead of it
    key = signing.verifier(ledger.home)
    if key is None:
        do = "put the installation's keys/platform.pem there first; backups never hold it"
        raise Refused("there is no key to check the backup with", str(ledger.home / "keys"), do=do)
    _readable(path)
    sha256 = file_digest(path)
    reading = _checked(path, key)
    _check_prefix(next(iter(ledger.entries(limit=1)), None), reading, path)
    lost = _lost(places, reading, key, path)
    if lost and not accept_loss.strip():
        raise Refused(
            f"the backup ends at entry {reading.count}, the ledger once reached {max(lost.values())}",
            str(path),
            do="restore a newer backup, or say with --accept-loss why the rest may be lost",
        )
    body: dict[str, Any] = {"backup": sha256, "entries": reading.count, "head": reading.head}
    kind = "ledger_restored"
    if lost:
        era = 1 + max(reading.era, *lost)
        kind, body = LOSS, {**body, "era": era, "reason": accept_loss.strip()}
        body["lost"] = {str(e): seq for e, seq in lost.items()}
    with ledger.writing(restores=True) as (connection, last):
        _check_prefix(last, reading, path)
        newest = _insert(connection, path, after=last.seq if last else 0) or last
        if file_digest(path) != sha256:
            raise Refused("the backup was changed while it was read", str(path), do="take another one")
        (entry,) = ledger.add(connection, newest, [New(kind, reading.head, body, "", by)])
    return entry


def _readable(path: Path) -> None:
    if not path.is_file():
        raise InputInvalid("there is no such file", str(path), do="name a backup")


def _checked(path: Path, key: Verifier) -> Reading:
    reading = chain.read(_rows(path, key), key)
    if reading.first_bad:
        said = f"entry {reading.first_bad['seq']}: {reading.first_bad['why']}"
        raise Refused("the backup does not verify", str(path), said, "take another one")
    return reading


def _lost(places: list[Kept], reading: Reading, key: Verifier, path: Path) -> dict[int, int]:
    """Era to the furthest entry that was exported and that the backup does not hold."""
    lost: dict[int, int] = {}
    for place in places:
        if place.error:
            do = "bring it back first: only it can say whether the backup is all there was"
            raise Refused("the place of the signed heads is out of reach", place.heads.place, place.error, do)
        bad = place.contradiction(reading, key)
        if bad and bad["seq"] <= reading.count:
            raise Refused("the backup is not of this ledger", str(path), f"entry {bad['seq']}: {bad['why']}")
        for mark in place.disagreeing(reading):
            lost[mark.era] = max(mark.seq, lost.get(mark.era, 0))
    return lost


def _check_prefix(last: Entry | None, reading: Reading, path: Path) -> None:
    if last is None:
        return
    if last.seq > reading.count:
        raise Refused(
            f"the ledger holds {last.seq} entries, the backup {reading.count}",
            str(path),
            do="nothing to restore; move the database aside first if it is damaged",
        )
    if reading.hashes[last.seq - 1] != last.hash:
        raise Refused(
            f"the ledger parts from the backup at or before entry {last.seq}",
            str(path),
            do="move the damaged database aside, as evidence, and restore into an empty one",
        )


def _insert(connection: sa.Connection, path: Path, after: int) -> Entry | None:
    """Insert the entries of a checked backup that come after; returns the last."""
    batch: list[dict[str, Any]] = []
    row: Row | None = None
    for row in _rows(path):
        if row.seq > after:
            batch.append(row._asdict())
        if len(batch) == _BATCH:
            connection.execute(ENTRIES.insert(), batch)
            batch = []
    if batch:
        connection.execute(ENTRIES.insert(), batch)
    return Entry.of(row) if row else None


def _document(row: Row) -> dict[str, Any]:
    return {**row._asdict(), "body": json.loads(row.body)}


def _rows(path: Path, key: Verifier | None = None) -> Iterator[Row]:
    """The entries of a backup; with a key, whether the file is whole is checked at its end.

    Raises:
        InputInvalid: the file is no backup.
        Refused: it is not whole, or its end is not signed by this installation.
    """
    digest, ended = hashlib.sha256(), False
    for number, line in enumerate(_lines(path)):
        document = _parsed(line, path, number)
        if number == 0:
            if document.get("ledger_backup") != _VERSION:
                raise InputInvalid("is not a backup of a ledger", str(path), do="name another file")
        elif "sha256" in document:
            end = {name: document.get(name) for name in ("entries", "head", "sha256")}
            whole = end["sha256"] == digest.hexdigest() and end["entries"] == number - 1
            if key and not (whole and key.holds(canonical(end), str(document.get("signature")))):
                raise Refused("the backup's end is not signed by this installation", str(path))
            ended = True
        elif ended:
            raise Refused("something was added to the backup", str(path), do="take another one")
        else:
            yield _row(document, path, number)
        digest.update(line)
    if not ended:
        raise Refused("the backup is cut off", str(path), do="take another one")


def _row(document: dict[str, Any], path: Path, number: int) -> Row:
    try:
        values: dict[str, Any] = {**document, "body": canonical(document["body"]).decode()}
        return Row(**values)
    except (TypeError, KeyError) as error:
        raise Refused("is not an entry", f"{path}:{number + 1}", str(error), "take another one") from None


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        document: Any = json.loads(line)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise InputInvalid("is not a backup of a ledger", f"{path}:{number + 1}", do="name another file")
    return document


def _lines(path: Path) -> Iterator[bytes]:
    import zstandard

    try:
        with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as packed:
            yield from io.BufferedReader(packed)  # type: ignore[type-var]
    except zstandard.ZstdError as error:
        raise Refused("the backup is damaged", str(path), str(error), "take another one") from None
