"""The append-only, hash-chained record of everything decided, released, looked at, revoked.

Each entry carries the hash of the one before it (`chain`). Triggers in the database refuse changes and
gaps (`ledger_schema`); every entry is signed (Ed25519), so that one written past this module shows; the
newest hash stands, signed, outside the database too (`heads`), so that a cut tail shows.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.governance import chain, signing
from ftaas_pipelines.governance.chain import Verification
from ftaas_pipelines.governance.entry import FORMAT, GENESIS, LOSS, Entry, New, Row
from ftaas_pipelines.governance.heads import Head, Heads, Kept, look, make
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import canonical, now

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["GENESIS", "Entry", "Ledger", "New", "Verification", "open_ledger"]

_log = logging.getLogger(__name__)
_OLD_HEAD = "ledger.head"  # of format 1: unsigned, in home
_DO_RESTORE = "stop, keep a copy as evidence, and `ftaas ledger restore` the last good backup"


class Ledger:
    """The ledger at one SQLAlchemy URL; made where it does not exist, brought up to date where it is old.

    Safe for many threads and processes.

    Args:
        url: `sqlite:///…` (one machine) or `postgresql://…`.
        home: folder of the signing key and of the heads that are always kept.
        policy: version digest of the platform policy: stands in every entry written here.
        heads: another place for the signed heads, out of reach of who can write the database: a folder or
            an fsspec URL.

    Raises:
        InputInvalid: the database cannot be written, or a newer platform wrote it.
    """

    def __init__(self, url: str, home: Path, policy: str = "", heads: str = ""):
        # SQLAlchemy is a quarter of a command's start: whoever opens no ledger does not load it.
        from ftaas_pipelines.governance import ledger_schema as schema

        self._schema = schema
        self.url, self.home, self.policy = url, home, policy
        self._engine = schema.connect(url)
        self._writer = self._engine.execution_options(writes=True)
        self._where = schema.without_password(url)
        # The first is the one that must know the end; home knows what was written from here.
        self.places = [Heads(heads)] if heads else []
        self.places.append(Heads(home / "ledger_heads"))
        self._continues = False
        try:
            home.mkdir(parents=True, exist_ok=True)
            with self._engine.connect() as connection:
                spoken = schema.spoken(connection)
            schema.check_format(spoken, self._where)
            if spoken < FORMAT:
                self._bring_up()
        except (OSError, schema.DBAPIError) as error:
            raise InputInvalid(
                "the ledger cannot be written",
                str(home) if url.startswith("sqlite") else self._where,
                schema.database_error(error),
                "make the folder writable or set FTAAS_HOME elsewhere"
                if url.startswith("sqlite")
                else "start the database, check FTAAS_LEDGER_URL, and open it once as the tables' owner",
            ) from error

    def _bring_up(self) -> None:
        old = self.home / _OLD_HEAD
        with contextlib.suppress(FileNotFoundError):
            # What the old file knows is kept before anything changes, also when it accuses the database.
            known = json.loads(old.read_text("utf-8"))
            self.places[-1].write(make(1, known["seq"], known["hash"], self.home))
        with self._writer.begin() as connection:
            self._schema.lock(connection)
            self._schema.bring_up(connection)
        old.unlink(missing_ok=True)

    # -- writing -------------------------------------------------------------------------------

    def append(self, kind: str, subject: str, body: dict[str, Any], *, project: str, actor: str) -> Entry:
        """Add one signed entry.

        Raises:
            FtaasError: the database is out of reach, or the ledger does not continue what was exported.
        """
        return self.append_many([New(kind, subject, body, project, actor)])[0]

    def append_many(self, new: Sequence[New]) -> list[Entry]:
        """Add signed entries, all or none, one after the other; exports one head.

        Raises:
            FtaasError: as `append`.
        """
        if not new:
            return []
        with self.writing() as (connection, last):
            return self.add(connection, last, new)

    @contextlib.contextmanager
    def writing(self, restores: bool = False) -> Iterator[tuple["Connection", Entry | None]]:
        """One transaction that alone may append; yields the newest entry; exports the head after it.

        Args:
            restores: the ledger need not reach as far as the heads that are kept: it is about to.
        """
        known = None if self._continues or restores else [look(place, newest=True) for place in self.places]
        with self._database(writes=True) as connection:
            self._schema.lock(connection)
            last = self._last(connection)
            if known is not None:
                self._check_continues(connection, last, known)
            yield connection, last
            newest, era = self._last(connection), self._era(connection)
        self._continues = True
        if newest and newest != last:
            self._export(make(era, newest.seq, newest.hash, self.home))

    def add(self, connection: "Connection", last: Entry | None, new: Sequence[New]) -> list[Entry]:
        """Chain, sign and insert entries after `last`, within `writing`."""
        made: list[Entry] = []
        for one in new:
            # A clock that was put back does not put the record back.
            at = max(now(), last.at) if last else now()
            body = json.loads(canonical(one.body))
            seq, prev = (last.seq + 1, last.hash) if last else (1, GENESIS)
            last = Entry(
                seq,
                at,
                one.kind,
                one.actor,
                one.project,
                one.subject,
                body,
                prev,
                "",
                "",
                FORMAT,
                self.policy,
            )
            hash_ = last.computed_hash()
            last = replace(last, hash=hash_, signature=signing.sign(self.home, hash_.encode()))
            made.append(last)
        self._schema.insert(connection, [entry.row for entry in made])
        return made

    def export_head(self) -> Head | None:
        """Sign the newest entry's hash and keep it in every place; None while the ledger is empty."""
        with self._database() as connection:
            newest, era = self._last(connection), self._era(connection)
        if newest is None:
            return None
        head = make(era, newest.seq, newest.hash, self.home)
        self._export(head)
        return head

    def _export(self, head: Head) -> None:
        for place in self.places:
            try:
                place.write(head)
            except Exception as error:  # each file system has errors of its own kind
                # The entry stands; the next head speaks for this one too.
                said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                _log.warning("the head of entry %d could not be kept in %s: %s", head.seq, place.place, said)

    def _check_continues(self, connection: "Connection", last: Entry | None, known: Iterable[Kept]) -> None:
        """Refuse to write on a ledger that was cut, replaced or signed by another key."""
        count, era = last.seq if last else 0, self._era(connection)
        if last:
            first = self._schema.first(connection)
            if not self.is_authentic(Entry.of(first)):
                raise FtaasError(
                    "the ledger was signed with another key",
                    str(self.home / "keys"),
                    do="put the installation's keys/platform.pem there, as on the machine that began it",
                )
        for place in known:
            mark = next((m for m in place.marks if m.era >= era), None)
            if mark is None:
                continue
            there = self._schema.hash_at(connection, mark.seq)
            if there is None or not there.startswith(mark.start):
                raise FtaasError(
                    f"the ledger ends at entry {count} and does not continue entry {mark.seq}, "
                    "whose head is kept",
                    place.heads.place,
                    do=_DO_RESTORE,
                )

    # -- reading -------------------------------------------------------------------------------

    def entries(
        self,
        kind: str | Sequence[str] | None = None,
        *,
        project: str | None = None,
        subject: str | None = None,
        as_of: str | None = None,
        authentic: bool = False,
        limit: int | None = None,
        after: int = 0,
    ) -> list[Entry]:
        """Entries in order, narrowed by kind, project, subject and time (ISO, inclusive by prefix).

        Args:
            kind: one, or any of several.
            authentic: leave out what this installation did not write unchanged. Whatever decides
                something reads so.
            limit: only the newest so many.
            after: only those behind this place in the chain (`seq`).
        """
        kinds = [kind] if isinstance(kind, str) else kind
        with self._database() as connection:
            newest = self._schema.newest(
                connection,
                limit,
                kinds=kinds,
                project=project,
                subject=subject,
                as_of=as_of,
                after=after,
            )
            found = [Entry.of(row) for row in newest]
        return [e for e in reversed(found) if not authentic or self.is_authentic(e)]

    def entry(self, entry_hash: str) -> Entry | None:
        """The entry with this hash, or None."""
        with self._database() as connection:
            row = self._schema.by_hash(connection, entry_hash)
        return Entry.of(row) if row else None

    @property
    def head(self) -> str:
        """Hash of the newest entry."""
        with self._database() as connection:
            newest = self._last(connection)
        return newest.hash if newest else GENESIS

    def rows(self) -> Iterator[Row]:
        """Every entry as the database holds it, in order, of one moment; not all in memory at once."""
        with self._database() as connection:
            yield from self._schema.rows(connection)

    def is_authentic(self, entry: Entry) -> bool:
        """Whether this installation wrote the entry, unchanged: what the gates rely on."""
        return entry.row.unchanged and signing.verify(self.home, entry.hash.encode(), entry.signature)

    # -- verifying -----------------------------------------------------------------------------

    def verify(self, as_of: str | None = None, seen: Callable[[Row], None] | None = None) -> Verification:
        """Recompute every hash and signature and hold the chain against the heads that were exported.

        Args:
            as_of: give `entries` and `head` as they were then; everything is verified nevertheless.
            seen: gets each entry as it was read for this.
        """
        known = [look(place) for place in self.places]  # before the rows, so that none can be ahead
        key = signing.verifier(self.home)
        broken: list[str] = []
        reading = chain.read(self._readable(broken, seen), key, as_of)
        bad = reading.first_bad
        if bad is None and broken:
            bad = {"seq": reading.count + 1, "why": f"the database cannot be read from here on: {broken[0]}"}
        for place in known:
            bad = bad or place.contradiction(reading, key)
        bad = bad or _unknown_end(known[0], reading) or self._damage()
        entries, head = reading.then if as_of else (reading.count, reading.head)
        return Verification(bad is None, entries, head, bad, self._warnings(reading))

    def _readable(self, broken: list[str], seen: Callable[[Row], None] | None) -> Iterator[Row]:
        try:
            for row in self.rows():
                if seen:
                    seen(row)
                yield row
        except FtaasError as error:
            broken.append(error.problems[0].got)

    def _damage(self) -> dict[str, Any] | None:
        try:
            with self._database() as connection:
                return self._schema.damage(connection)
        except FtaasError as error:
            return {"seq": 1, "why": f"the database cannot be checked: {error.problems[0].got}"}

    def _warnings(self, reading: chain.Reading) -> list[str]:
        found: list[str] = []
        with contextlib.suppress(FtaasError), self._database() as connection:
            missing = self._schema.guards_missing(connection)
            if missing:
                found.append(f"the database no longer refuses changes: {', '.join(missing)} is gone or off")
        with contextlib.suppress(Exception):  # out of reach: said already
            newest, place = self.places[0].newest(), self.places[0].place
            reach = newest.seq if newest and newest.era == reading.era else 0
            if newest and reach < reading.count:
                found.append(f"{place} is {reading.count - reach} entries behind; the next entry catches up")
        return found

    # -- plumbing ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _database(self, writes: bool = False) -> Iterator["Connection"]:
        try:
            with (self._writer if writes else self._engine).begin() as connection:
                yield connection
        except self._schema.DBAPIError as error:
            do = "check that the database runs and that its role may read and append"
            said = self._schema.database_error(error)
            raise FtaasError("the ledger's database does not do it", self._where, said, do) from error

    def _last(self, connection: "Connection") -> Entry | None:
        row = next(iter(self._schema.newest(connection, 1)), None)
        return Entry.of(row) if row else None

    def _era(self, connection: "Connection") -> int:
        given_up = next(iter(self._schema.newest(connection, 1, kinds=[LOSS])), None)
        return int(json.loads(given_up.body).get("era", 1)) if given_up else 1


def open_ledger(settings: Settings, policy: str = "") -> Ledger:
    """The ledger that the settings name, its heads kept where they say; `policy` as in `Ledger`."""
    return Ledger(settings.ledger, settings.home, policy, settings.ledger_head)


def _unknown_end(place: Kept, reading: chain.Reading) -> dict[str, Any] | None:
    """Whether the place that must know the end does not: then a cut tail cannot be ruled out."""
    after = reading.count + 1
    if place.error:
        return {"seq": after, "why": f"{place.heads.place} is out of reach: cut or not, cannot be said"}
    if reading.count and not place.marks:
        why = "holds no head: removed, or never exported (`ftaas ledger head` does)"
        return {"seq": after, "why": f"{place.heads.place} {why}"}
    return None
