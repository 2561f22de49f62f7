"""The append-only, hash-chained record of everything decided, released, looked at, revoked.

Each entry carries the hash of the one before it. Triggers in the database refuse changes and gaps;
every entry is signed (Ed25519), so that one written past this module shows; the newest hash stands
also in a file beside the database, so that a cut tail shows.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.governance import signing
from ftaas_pipelines.store import canonical, digest_of, now

GENESIS = "0" * 64

_METADATA = sa.MetaData()
_ENTRIES = sa.Table(
    "ledger",
    _METADATA,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False, index=True),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("project", sa.Text, nullable=False, index=True),
    sa.Column("subject", sa.Text, nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("prev", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("signature", sa.Text, nullable=False),
)
# `INSERT OR REPLACE` passes UPDATE and DELETE triggers: the insert trigger checks the chain itself.
_SQLITE_TRIGGERS = (
    "CREATE TRIGGER IF NOT EXISTS ledger_no_update BEFORE UPDATE ON ledger "
    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    "CREATE TRIGGER IF NOT EXISTS ledger_no_delete BEFORE DELETE ON ledger "
    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    "CREATE TRIGGER IF NOT EXISTS ledger_chain BEFORE INSERT ON ledger "
    "WHEN NEW.seq <> (SELECT COALESCE(MAX(seq), 0) + 1 FROM ledger) OR NEW.prev <> "
    f"COALESCE((SELECT hash FROM ledger ORDER BY seq DESC LIMIT 1), '{GENESIS}') "
    "BEGIN SELECT RAISE(ABORT, 'the entry does not continue the chain'); END",
)


@dataclass(frozen=True)
class Entry:
    """One line of the ledger. `subject` is the digest or name it speaks of."""

    seq: int
    at: str
    kind: str
    actor: str
    project: str
    subject: str
    body: dict[str, Any]
    prev: str
    hash: str
    signature: str

    def computed_hash(self) -> str:
        return digest_of(
            {
                "seq": self.seq,
                "at": self.at,
                "kind": self.kind,
                "actor": self.actor,
                "project": self.project,
                "subject": self.subject,
                "body": self.body,
                "prev": self.prev,
            }
        )


@dataclass(frozen=True)
class Verification:
    """The result of reading the whole chain. `first_bad` is `{"seq", "why"}` or None."""

    ok: bool
    entries: int
    head: str
    first_bad: dict[str, Any] | None


class Ledger:
    """The ledger at one SQLAlchemy URL; made where it does not exist.

    Args:
        url: `sqlite:///…` (one machine). PostgreSQL comes with the production profile.
        home: folder of the signing key and of the head file.

    Raises:
        InputInvalid: the place cannot be written.
    """

    def __init__(self, url: str, home: Path):
        self.url, self.home = url, home
        try:
            home.mkdir(parents=True, exist_ok=True)
            self._engine = sa.create_engine(url, connect_args={"timeout": 60})
            # SQLAlchemy's default lets SQLite begin lazily; the chain needs the write lock first.
            event.listen(self._engine, "connect", _autocommit_off)
            event.listen(self._engine, "begin", _begin)
            self._writer = self._engine.execution_options(writes=True)
            with self._writer.begin() as connection:
                if not sa.inspect(connection).has_table("ledger"):
                    _METADATA.create_all(connection)
                    for trigger in _SQLITE_TRIGGERS:
                        connection.execute(sa.text(trigger))
        except (OSError, OperationalError) as error:
            raise InputInvalid(
                "the ledger cannot be written",
                str(home),
                str(getattr(error, "orig", error)),
                "make the folder writable or set FTAAS_HOME elsewhere",
            ) from error

    def append(self, kind: str, subject: str, body: dict[str, Any], *, project: str, actor: str) -> Entry:
        """Add one signed entry."""
        with self._writer.begin() as connection:
            last = connection.execute(
                sa.select(_ENTRIES.c.seq, _ENTRIES.c.hash).order_by(_ENTRIES.c.seq.desc()).limit(1)
            ).first()
            seq, prev = (last.seq + 1, last.hash) if last else (1, GENESIS)
            body = json.loads(canonical(body))
            entry = Entry(seq, now(), kind, actor, project, subject, body, prev, "", "")
            hash_ = entry.computed_hash()
            entry = replace(entry, hash=hash_, signature=signing.sign(self.home, hash_.encode()))
            connection.execute(_ENTRIES.insert().values({**entry.__dict__, "body": canonical(body).decode()}))
        self._write_head(entry)
        return entry

    def entries(
        self,
        kind: str | None = None,
        *,
        project: str | None = None,
        subject: str | None = None,
        as_of: str | None = None,
        authentic: bool = False,
    ) -> list[Entry]:
        """Entries in order, narrowed by kind, project, subject and time (ISO, inclusive by prefix).

        Args:
            authentic: leave out what this installation did not write unchanged. Whatever decides
                something reads so.
        """
        query = sa.select(_ENTRIES).order_by(_ENTRIES.c.seq)
        for column, value in (("kind", kind), ("project", project), ("subject", subject)):
            if value is not None:
                query = query.where(_ENTRIES.c[column] == value)
        if as_of:
            query = query.where(_ENTRIES.c.at <= as_of + "~")
        with self._engine.connect() as connection:
            found = [_entry(row) for row in connection.execute(query)]
        return [e for e in found if not authentic or self.is_authentic(e)]

    def entry(self, entry_hash: str) -> Entry | None:
        """The entry with this hash, or None."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(_ENTRIES).where(_ENTRIES.c.hash == entry_hash)).first()
        return _entry(row) if row else None

    @property
    def head(self) -> str:
        """Hash of the newest entry."""
        with self._engine.connect() as connection:
            row = connection.execute(
                sa.select(_ENTRIES.c.hash).order_by(_ENTRIES.c.seq.desc()).limit(1)
            ).first()
        return row.hash if row else GENESIS

    def verify(self) -> Verification:
        """Recompute every hash and signature and compare the end with the head file."""
        prev, count = GENESIS, 0
        bad: dict[str, Any] | None = None
        for expected, entry in enumerate(self._all(), start=1):
            count += 1
            if bad is None:
                bad = self._first_fault(entry, expected, prev)
            prev = entry.hash
        if bad is None:
            bad = self._head_fault(count)
        return Verification(bad is None, count, prev, bad)

    def _all(self) -> Iterator[Entry]:
        with self._engine.connect() as connection:
            for row in connection.execute(sa.select(_ENTRIES).order_by(_ENTRIES.c.seq)):
                yield _entry(row)

    def _first_fault(self, entry: Entry, expected: int, prev: str) -> dict[str, Any] | None:
        if entry.seq != expected:
            return {"seq": expected, "why": "an entry is missing"}
        if entry.prev != prev:
            return {"seq": entry.seq, "why": "it does not continue the entry before it"}
        if entry.computed_hash() != entry.hash:
            return {"seq": entry.seq, "why": "its content was changed"}
        if not self.is_authentic(entry):
            return {"seq": entry.seq, "why": "its signature does not verify"}
        return None

    def is_authentic(self, entry: Entry) -> bool:
        """Whether this installation wrote the entry, unchanged: what the gates rely on."""
        return entry.computed_hash() == entry.hash and signing.verify(
            self.home, entry.hash.encode(), entry.signature
        )

    # -- head file: remembers how far the chain once reached -----------------------------------

    @property
    def _head_file(self) -> Path:
        return self.home / "ledger.head"

    def _write_head(self, entry: Entry) -> None:
        # After the commit: a crash in between leaves the file one behind, which is no fault.
        temporary = self._head_file.with_name(f".ledger.head.{os.getpid()}.{entry.seq}")
        temporary.write_bytes(canonical({"seq": entry.seq, "hash": entry.hash}))
        temporary.replace(self._head_file)

    def _head_fault(self, count: int) -> dict[str, Any] | None:
        if not self._head_file.exists():
            return {"seq": count, "why": "the head file is missing"} if count else None
        head = json.loads(self._head_file.read_text("utf-8"))
        if head["seq"] > count:
            return {"seq": count + 1, "why": f"entries up to {head['seq']} once stood here: the tail was cut"}
        if self.entry(head["hash"]) is None:
            return {"seq": head["seq"], "why": "the entry that the head file names is gone"}
        return None


def _entry(row: Any) -> Entry:
    values = dict(row._mapping)
    try:
        return Entry(**{**values, "body": json.loads(values["body"])})
    except ValueError as error:
        raise FtaasError(
            "an entry is not JSON", f"ledger entry {values['seq']}", do="restore a backup"
        ) from error


def _autocommit_off(connection: Any, _: Any) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
