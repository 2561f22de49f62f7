"""The inference log, reading: one answer by its id, what was said of it, or all of a time. Light until asked.

A reader sees every row once, as it stood when it looked: it opens all files while none may come or go.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ftaas_pipelines.serving.answer_files import TEXTS, AnswerFolder, Erasure, Kind, day_of
from ftaas_pipelines.serving.desired import Folder
from ftaas_pipelines.settings import ENVIRONMENTS

_LATER = "9999"  # of spools: newer than any day


@dataclass(frozen=True)
class _Seen:
    """What a reader opened: it lasts also when the files are gone."""

    files: AnswerFolder
    spools: list[bytes]
    erasures: list[Erasure]
    days: list[tuple[str, list[Any]]]

    def spooled(self, kind: Kind, needle: bytes = b"") -> list[dict[str, Any]]:
        found = (r for s in self.spools for r in self.files.rows(s, self.erasures, needle))
        return [row for k, row in found if k == kind]


def _open(folder: Path, kind: Kind, since: float | None = None, until: float | None = None) -> _Seen:
    files = AnswerFolder(folder)
    first = day_of(since) if since is not None else ""
    last = day_of(until) if until is not None else _LATER
    with files.still():
        days: list[tuple[str, list[Any]]] = []
        for day, paths in files.days(kind):
            if first <= day <= last and paths:
                import pyarrow as pa

                days.append((day, [pa.memory_map(str(path)) for path in paths]))
        return _Seen(files, [path.read_bytes() for path in files.spools()], files.erasures(), days)


def find(folder: Path, id: str) -> dict[str, Any] | None:
    """The row of an answer (or refusal), with `erased_at`; None where there is none."""
    return next(_with_id(folder, "answered", id), None)


def feedback_of(folder: Path, id: str) -> list[dict[str, Any]]:
    """What was said of an answer, oldest first."""
    return sorted(_with_id(folder, "feedback", id), key=lambda row: row["at"])


def response(home: Path, id: str) -> dict[str, Any] | None:
    """An answer of any environment, with `environment` and `feedback`; None where there is none."""
    for environment in ENVIRONMENTS:
        folder = Folder(home, environment).answers
        if found := find(folder, id):
            return {**found, "environment": environment, "feedback": feedback_of(folder, id)}
    return None


def scan(
    folder: Path,
    since: float | None = None,
    until: float | None = None,
    project: str = "",
    columns: Sequence[str] | None = None,
    kind: Kind = "answered",
) -> Iterator[dict[str, Any]]:
    """The rows that came in [since, until), UTC s; newest day first, in no order within a day.

    Args:
        columns: only these: without `prompt` and `answer` it is many times as fast.
        kind: or `feedback`.
    """
    for _, content in tables(folder, since, until, project, columns, kind):
        yield from content.to_pylist()


def newest(
    folder: Path,
    limit: int,
    project: str = "",
    since: float | None = None,
    until: float | None = None,
    kind: Kind = "answered",
    texts: bool = False,
) -> list[dict[str, Any]]:
    """The newest rows, newest first; without texts unless told."""
    import pyarrow as pa

    from ftaas_pipelines.serving.answer_tables import SCHEMAS

    names = [n for n in SCHEMAS[kind].names if texts or n not in TEXTS[kind]]
    top = SCHEMAS[kind].empty_table().select(names)
    for day, content in tables(folder, since, until, project, names, kind):
        if top.num_rows == limit and day < day_of(top["at"][limit - 1].as_py()):
            break
        top = pa.concat_tables([top, content]).sort_by([("at", "descending"), ("id", "ascending")])[:limit]
    return top.to_pylist()


def tables(
    folder: Path,
    since: float | None = None,
    until: float | None = None,
    project: str = "",
    columns: Sequence[str] | None = None,
    kind: Kind = "answered",
) -> Iterator[tuple[str, Any]]:
    """As `scan`, in Arrow tables of some thousand rows, each with its day."""
    seen = _open(folder, kind, since, until)
    from ftaas_pipelines.serving import answer_tables

    wanted = list(columns or answer_tables.SCHEMAS[kind].names)
    read = list(dict.fromkeys([*wanted, "at", "project"]))
    rows = answer_tables.table(kind, seen.spooled(kind))
    if rows.num_rows:
        yield _LATER, _filtered(answer_tables.merged(kind, [rows]), since, until, project).select(wanted)
    for day, sources in seen.days:
        for source in sources:
            for group in answer_tables.groups(kind, source, read):
                yield day, _filtered(group, since, until, project).select(wanted)


def _filtered(content: Any, since: float | None, until: float | None, project: str) -> Any:
    import pyarrow.compute

    pc: Any = pyarrow.compute
    for name, test, value in (
        ("at", pc.greater_equal, since),
        ("at", pc.less, until),
        ("project", pc.equal, project or None),
    ):
        if value is not None:
            content = content.filter(test(content[name], value))
    return content


def _with_id(folder: Path, kind: Kind, id: str) -> Iterator[dict[str, Any]]:
    seen = _open(folder, kind)
    needle = b'"id":' + orjson.dumps(id)
    found: set[Any] = set()
    for row in seen.spooled(kind, needle):
        if row["id"] == id and row.get("at") not in found:
            found.add(row.get("at"))
            yield {"erased_at": None, **row}
    for _, sources in seen.days:
        for source in sources:
            from ftaas_pipelines.serving.answer_tables import with_id

            yield from with_id(kind, source, id)


def said_at(at: float) -> str:
    """A time as people read it: UTC, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
