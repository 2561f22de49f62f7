"""SQL: a query's result as JSONL, through any SQLAlchemy URL; whole, or only what is above a watermark."""

from collections.abc import Iterator
from datetime import date, time
from itertools import chain
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import exc
from sqlalchemy.pool import NullPool

from ftaas_pipelines.data.sources import secrets
from ftaas_pipelines.data.sources.fetched import Fetched, plain, write_rows
from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.projects.dataset import Sql

_MEND = "mend the source's sql.query"
_AT_A_TIME = 1000
_CONNECT_S = 30
_WITH_CONNECT_TIMEOUT = ("psycopg2", "psycopg", "pymysql", "mysqldb")
# Their messages speak of the query or the connection; those of the others may quote a row's value.
_SPEAKS_OF_THE_QUERY = (exc.ProgrammingError, exc.OperationalError, exc.InterfaceError)


def fetch(sql: Sql, into: Path, before: Fetched | None) -> Fetched | None:
    """The rows of the query, sorted; None when no row is above the watermark of `before`.

    With a watermark the new rows join those fetched before. The query must take the first time too, when
    there is none: `WHERE :watermark IS NULL OR changed_at > :watermark`. Rows that are deleted, or changed
    without a greater watermark, are not seen. The connection is streamed, and rolled back at its end.

    Raises:
        InputInvalid: the URL or the query is wrong, or no row came the first time.
        FtaasError: the database cannot be reached, or died half-way.
    """
    url = _url(sql)
    target = into / "rows.jsonl"
    seen = _Watermark(sql, before)
    earlier = before if sql.watermark else None
    try:
        engine = _engine(url, sql)
        with engine.connect() as connection:
            options = {"stream_results": True, "yield_per": _AT_A_TIME}
            result = connection.execute(seen.query, seen.parameters, execution_options=options)
            rows = seen.watch(_rows(result, sql))
            first = next(rows, None)
            if first is None and earlier:
                return None
            if first is None:
                raise InputInvalid("the query returned no row", _where(sql), do=_MEND)
            count = write_rows(chain([first], rows), target, earlier.files if earlier else ())
    except exc.SQLAlchemyError as error:
        raise _explained(error, url, sql) from None
    return Fetched(files=[target], rows=count, watermark=seen.text)


class _Watermark:
    """The greatest value of the watermark column, of this look and those before."""

    def __init__(self, sql: Sql, before: Fetched | None):
        self._sql, self._before = sql, before.watermark if before else None
        self._greatest: Any = None
        self.query = sqlalchemy.text(sql.query)
        self.parameters = {"watermark": self._before} if sql.watermark else {}

    def watch(self, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        name = self._sql.watermark
        for row in rows:
            if name and row[name] is not None:
                self._greatest = row[name] if self._greatest is None else max(self._greatest, row[name])
            yield row

    @property
    def text(self) -> str | int | float | None:
        """As landing.json keeps it and the next query gets it."""
        if self._greatest is None:
            return self._before
        if isinstance(self._greatest, date | time):
            return self._greatest.isoformat()
        return self._greatest if isinstance(self._greatest, str | int | float) else plain(self._greatest)


def _rows(result: sqlalchemy.CursorResult[Any], sql: Sql) -> Iterator[dict[str, Any]]:
    if not result.returns_rows:
        raise InputInvalid("the query returns no rows by its kind", _where(sql), do="write a SELECT")
    names = list(result.keys())
    if doubles := sorted({n for n in names if names.count(n) > 1}):
        raise InputInvalid("two columns have one name", _where(sql), ", ".join(doubles), "name them with AS")
    if sql.watermark and sql.watermark not in names:
        raise InputInvalid(
            f"the watermark column '{sql.watermark}' is not in the result",
            _where(sql),
            ", ".join(names),
            "select it",
        )
    for row in result:
        yield dict(row._mapping)  # pyright: ignore[reportPrivateUsage]  # SQLAlchemy's documented name


def _url(sql: Sql) -> sqlalchemy.URL:
    try:
        return sqlalchemy.make_url(secrets.value(sql.url))
    except exc.ArgumentError:
        do = "write dialect+driver://user:password@host/database"
        raise InputInvalid("is not a SQLAlchemy URL", sql.url, do=do) from None


def _engine(url: sqlalchemy.URL, sql: Sql) -> sqlalchemy.Engine:
    try:
        limited = url.get_driver_name() in _WITH_CONNECT_TIMEOUT
        arguments = {"connect_timeout": _CONNECT_S} if limited else {}
        return sqlalchemy.create_engine(url, poolclass=NullPool, connect_args=arguments)
    except (exc.NoSuchModuleError, ImportError):
        do = "install the database's driver beside ftaas"
        raise InputInvalid("no driver for this database", sql.url, url.drivername, do) from None


def _where(sql: Sql) -> str:
    return f"sql {sql.url}"


def _explained(error: exc.SQLAlchemyError, url: sqlalchemy.URL, sql: Sql) -> FtaasError:
    """The database's error without the URL's password and without a value of a row."""
    cause = getattr(error, "orig", None)
    got = type(cause or error).__name__
    if isinstance(error, _SPEAKS_OF_THE_QUERY):
        got += f": {secrets.hide(str(cause).strip().splitlines()[0], url.password)}"
    if isinstance(error, exc.ProgrammingError | exc.StatementError) and not isinstance(
        error, exc.OperationalError | exc.DataError | exc.InternalError | exc.InterfaceError
    ):
        return InputInvalid("the query fails", _where(sql), got, _MEND)
    do = "see the database's log; nothing was taken over"
    return FtaasError("the database cannot be reached or broke off", _where(sql), got, do)
