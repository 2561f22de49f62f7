"""The ledger's tables in SQLite and PostgreSQL: made, brought up to date, guarded by triggers, and read.

The database itself refuses to change, remove, replace or skip an entry. Whoever owns the tables could
drop the triggers; that shows in `verify`, and `grants()` is for a role that cannot.
"""

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.governance.entry import FORMAT, GENESIS, Row

__all__ = ["ENTRIES", "DBAPIError"]

_METADATA = sa.MetaData()
# Times are compared as text, byte by byte: not in the order of some language.
_TIME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
ENTRIES = sa.Table(
    "ledger",
    _METADATA,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", _TIME, nullable=False),
    sa.Column("kind", sa.Text, nullable=False, index=True),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("project", sa.Text, nullable=False, index=True),
    sa.Column("subject", sa.Text, nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("prev", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False, index=True),
    sa.Column("signature", sa.Text, nullable=False),
    sa.Column("format", sa.Integer, nullable=False, server_default="1"),
    sa.Column("policy", sa.Text, nullable=False, server_default=""),
)
# One row a migration; the highest is what this database speaks.
_FORMATS = sa.Table("ledger_format", _METADATA, sa.Column("format", sa.Integer, primary_key=True))
_SINCE_2 = ("format INTEGER NOT NULL DEFAULT 1", "policy TEXT NOT NULL DEFAULT ''")

# `INSERT OR REPLACE` passes UPDATE and DELETE triggers: the insert trigger checks the chain itself.
_SQLITE = {
    "ledger_no_update": "BEFORE UPDATE ON ledger BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    "ledger_no_delete": "BEFORE DELETE ON ledger BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    "ledger_chain": "BEFORE INSERT ON ledger "
    "WHEN NEW.seq <> (SELECT COALESCE(MAX(seq), 0) + 1 FROM ledger) OR NEW.prev <> "
    f"COALESCE((SELECT hash FROM ledger ORDER BY seq DESC LIMIT 1), '{GENESIS}') "
    "BEGIN SELECT RAISE(ABORT, 'the entry does not continue the chain'); END",
}
# Statement triggers fire for ON CONFLICT DO UPDATE too; ALWAYS: also in a session that says it replicates.
_POSTGRESQL_FUNCTIONS = (
    "CREATE OR REPLACE FUNCTION ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ "
    "BEGIN RAISE EXCEPTION 'the ledger is append-only' USING ERRCODE = 'integrity_constraint_violation'; "
    "END $$",
    "CREATE OR REPLACE FUNCTION ledger_continue() RETURNS trigger LANGUAGE plpgsql AS $$ "
    "DECLARE last record; BEGIN "
    # By its full name: a temporary table called `ledger` must not answer.
    "EXECUTE format('SELECT seq, hash FROM %I.%I ORDER BY seq DESC LIMIT 1', TG_TABLE_SCHEMA, TG_TABLE_NAME) "
    "INTO last; "
    f"IF NEW.seq <> COALESCE(last.seq, 0) + 1 OR NEW.prev <> COALESCE(last.hash, '{GENESIS}') THEN "
    "RAISE EXCEPTION 'the entry does not continue the chain' "
    "USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN NEW; END $$",
)
_POSTGRESQL = {
    "ledger_append_only": "BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger "
    "FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse()",
    "ledger_chain": "BEFORE INSERT ON ledger FOR EACH ROW EXECUTE FUNCTION ledger_continue()",
}
_LOCK = 0x6674_6161_735F_6C67  # "ftaas_lg": PostgreSQL's advisory lock of whoever appends


def connect(url: str) -> sa.Engine:
    """An engine for the ledger's database.

    Raises:
        InputInvalid: neither SQLite nor PostgreSQL.
    """
    backend = ""
    with contextlib.suppress(ArgumentError, NoSuchModuleError):
        parsed = sa.make_url(url)
        if parsed.drivername == "postgresql":  # SQLAlchemy would look for psycopg 3
            parsed = parsed.set(drivername="postgresql+psycopg2")
        backend = parsed.get_backend_name()
        if backend == "sqlite":
            return _sqlite(url)
        if backend == "postgresql":
            return _postgresql(parsed.render_as_string(hide_password=False), os.getpid())
    raise InputInvalid(
        "is not a database the ledger can live in",
        "FTAAS_LEDGER_URL",
        backend,
        "use sqlite:///… or postgresql://…",
    )


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    return sa.make_url(url).render_as_string(hide_password=True)


def _sqlite(url: str) -> sa.Engine:
    engine = sa.create_engine(url, connect_args={"timeout": 60})
    # SQLAlchemy's default lets SQLite begin lazily; the chain needs the write lock first.
    event.listen(engine, "connect", _sqlite_connected)
    event.listen(engine, "begin", _sqlite_begin)
    return engine


@lru_cache(maxsize=8)
def _postgresql(url: str, _: int) -> sa.Engine:
    # One engine a process: a sensor opens the ledger at every tick, and connections are dear.
    return sa.create_engine(
        url, pool_pre_ping=True, pool_size=2, max_overflow=8, connect_args={"connect_timeout": 10}
    )


def _sqlite_connected(connection: Any, _: Any) -> None:
    connection.isolation_level = None
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    except UnicodeDecodeError:  # what is wrong with the schema, in the words of a damaged byte (CPython 3.11)
        raise sqlite3.DatabaseError("malformed database schema") from None
    # A damaged byte must be found by `verify`, not end it.
    connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")


def _sqlite_begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def lock(connection: sa.Connection) -> None:
    """Keep other writers out until this transaction ends (SQLite: its BEGIN IMMEDIATE does)."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


def spoken(connection: sa.Connection) -> int:
    """The format that the database speaks; 0 when there is no ledger in it."""
    look = sa.inspect(connection)
    if look.has_table(_FORMATS.name):
        return connection.execute(sa.select(sa.func.max(_FORMATS.c.format))).scalar() or 1
    return 1 if look.has_table(ENTRIES.name) else 0


def check_format(version: int, where: str) -> None:
    """Refuse a database that a newer platform wrote.

    Raises:
        InputInvalid: with both formats.
    """
    if version > FORMAT:
        raise InputInvalid(
            f"the ledger's database has format {version}, this platform knows up to {FORMAT}",
            where,
            do="upgrade the platform; nothing was changed",
        )


def bring_up(connection: sa.Connection) -> None:
    """Make the tables and triggers, or bring older ones up to date; entries stay as they are.

    All of it or nothing: both databases change their tables within a transaction.
    """
    version = spoken(connection)
    if version >= FORMAT:
        return
    if version == 1:
        there = {column["name"] for column in sa.inspect(connection).get_columns(ENTRIES.name)}
        for column in _SINCE_2:
            if column.split()[0] not in there:
                connection.execute(sa.text(f"ALTER TABLE {ENTRIES.name} ADD COLUMN {column}"))
        for index in ENTRIES.indexes:
            index.create(connection, checkfirst=True)
    _METADATA.create_all(connection)
    if version == 0:
        _guard(connection)
    connection.execute(_FORMATS.insert().values(format=FORMAT))


def _guard(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        for name, rule in _SQLITE.items():
            connection.exec_driver_sql(f"CREATE TRIGGER {name} {rule}")
        return
    for function in _POSTGRESQL_FUNCTIONS:
        connection.execute(sa.text(function))
    for name, rule in _POSTGRESQL.items():
        connection.exec_driver_sql(f"CREATE TRIGGER {name} {rule}")
        connection.exec_driver_sql(f"ALTER TABLE ledger ENABLE ALWAYS TRIGGER {name}")


def guards_missing(connection: sa.Connection) -> list[str]:
    """Names of the triggers that somebody dropped, changed or switched off."""
    if connection.dialect.name == "sqlite":
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'ledger'"
        there = {str(name): " ".join(str(sql).split()) for name, sql in connection.exec_driver_sql(query)}
        return sorted(n for n, rule in _SQLITE.items() if not there.get(n, "").endswith(rule))
    query = "SELECT tgname FROM pg_trigger WHERE tgrelid = 'ledger'::regclass AND tgenabled = 'A'"
    return sorted(_POSTGRESQL.keys() - {str(name) for (name,) in connection.exec_driver_sql(query)})


def damage(connection: sa.Connection) -> dict[str, Any] | None:
    """What SQLite finds wrong with its own file, such as an index that hides an entry: `{"seq", "why"}`."""
    if connection.dialect.name != "sqlite":
        return None
    said = str(connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar())
    if said == "ok":
        return None
    row = re.search(r"\brow (\d+)", said)
    return {"seq": int(row[1]) if row else 1, "why": f"the database file is damaged: {said}"}


def insert(connection: sa.Connection, rows: Sequence[Row]) -> None:
    """Add entries; the triggers refuse what does not continue the chain."""
    connection.execute(ENTRIES.insert(), [row._asdict() for row in rows])


def rows(connection: sa.Connection) -> Iterator[Row]:
    """Every entry in order; not all in memory at once."""
    query = sa.select(ENTRIES).order_by(ENTRIES.c.seq).execution_options(yield_per=1000)
    for row in connection.execute(query):
        yield Row(*row)


def first(connection: sa.Connection) -> Row:
    """The entry that the ledger began with."""
    return Row(*connection.execute(sa.select(ENTRIES).order_by(ENTRIES.c.seq).limit(1)).one())


def newest(
    connection: sa.Connection,
    limit: int | None,
    *,
    kinds: Sequence[str] | None = None,
    project: str | None = None,
    subject: str | None = None,
    as_of: str | None = None,
    after: int = 0,
) -> list[Row]:
    """The newest entries, newest first, narrowed as `Ledger.entries`."""
    query = sa.select(ENTRIES).order_by(ENTRIES.c.seq.desc()).limit(limit)
    if kinds is not None:
        query = query.where(ENTRIES.c.kind.in_(kinds))
    for column, value in ((ENTRIES.c.project, project), (ENTRIES.c.subject, subject)):
        if value is not None:
            query = query.where(column == value)
    if as_of:
        query = query.where(ENTRIES.c.at <= as_of + "~")
    if after:
        query = query.where(ENTRIES.c.seq > after)
    return [Row(*row) for row in connection.execute(query)]


def by_hash(connection: sa.Connection, entry_hash: str) -> Row | None:
    """The entry with this hash."""
    row = connection.execute(sa.select(ENTRIES).where(ENTRIES.c.hash == entry_hash)).first()
    return Row(*row) if row else None


def hash_at(connection: sa.Connection, seq: int) -> str | None:
    """The hash of entry number `seq`."""
    return connection.execute(sa.select(ENTRIES.c.hash).where(ENTRIES.c.seq == seq)).scalar()


def grants(role: str) -> list[str]:
    """SQL for a PostgreSQL role that can read and append and nothing else; run by the tables' owner."""
    from sqlalchemy.dialects import postgresql

    name = postgresql.dialect().identifier_preparer.quote_identifier(role)
    return [
        f"REVOKE ALL ON ledger, ledger_format FROM PUBLIC, {name};",
        f"GRANT SELECT, INSERT ON ledger TO {name};",
        f"GRANT SELECT ON ledger_format TO {name};",
    ]


def database_error(error: Exception) -> str:
    """What the driver said, in one line, without the statement and its values."""
    said = error.orig if isinstance(error, DBAPIError) else error
    return str(said).strip().partition("\n")[0]
