"""Upkeep of an inference log: Parquet of spools, few files a day, what is past its days, erasures.

`python -m ftaas_pipelines.serving.answer_upkeep FOLDER` is what the writer starts, beside itself. It may be
killed at any time; the next one goes on. The log is written and read meanwhile.
"""

import argparse
import json
import logging
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from ftaas_pipelines.serving import answer_tables as tables
from ftaas_pipelines.serving import answers
from ftaas_pipelines.serving.answer_files import (
    KINDS,
    TEXTS,
    AnswerFolder,
    Erasure,
    Kind,
    day_of,
    order_line,
    write_whole,
)

pc: Any = pyarrow.compute  # its functions are made at run time

_log = logging.getLogger("ftaas.inference_log")
_SMALL_BYTES = 32 << 20  # files below are merged: many of them today, any two of a day that is over
_MANY = 16
_POLL_S = 0.05


@dataclass(frozen=True)
class Erased:
    """What an erasure did: rows that lost their texts, by kind.

    Attributes:
        waiting: spool files that a process still holds; their texts go when it lets go of them.
    """

    answers: int
    feedback: int
    waiting: int


def tidy(
    folder: Path,
    keep_days: int = 90,
    by_project: Mapping[str, int] | None = None,
    today: Callable[[], str] = lambda: day_of(time.time()),
) -> None:
    """Make Parquet of the spools that nobody writes, drop what is past its days, merge small files.

    Raises:
        OSError: the disk is full, say; nothing is lost.
    """
    files = AnswerFolder(folder)
    with files.upkeep():
        _convert(files, files.erasures())
        _prune(files, Days(date.fromisoformat(today()), keep_days, by_project or {}))
        _merge(files, today())


def erase(
    folder: Path, *, caller: str = "", ids: Sequence[str] = (), wait_s: float = 5.0, at: float | None = None
) -> Erased:
    """Erase the texts of a caller, or of answers by id, in what came up to now (or `at`, UTC s).

    The rows stay, with `erased_at`. With a caller's answers goes what anybody said of them: it repeats them.

    Raises:
        OSError: the disk is full, say; what was not erased yet is when this is run again.
    """
    order = Erasure(time.time() if at is None else at, caller, tuple(ids))
    files = AnswerFolder(folder)
    if not folder.is_dir():
        return Erased(0, 0, 0)
    with files.upkeep():
        known = files.orders.read_bytes() if files.orders.exists() else b""
        write_whole(
            files.orders, known + order_line(order)
        )  # writers let go of their spools when this changes
        held = files.spools()
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and not all(map(files.sealed, held)):
            time.sleep(_POLL_S)
        done = _convert(files, [one for one in files.erasures() if one != order])
        count, covered = _erase(files, "answered", order, set(ids))
        done["answered"] += count
        done["feedback"] += _erase(files, "feedback", order, covered)[0]
        waiting = sum(spool.exists() for spool in held)
    return Erased(done["answered"], done["feedback"], waiting)


def _convert(files: AnswerFolder, late: Sequence[Erasure]) -> Counter[str]:
    """Parquet of sealed spools. Returns how many rows lost their texts to an erasure on the way.

    Args:
        late: erasures of callers that are over; feedback on their answers that came too late goes now.
    """
    erasures, erased = files.erasures(), Counter[str]()
    for spool in files.spools():
        if not files.sealed(spool):
            continue
        bad: list[Any] = []
        rows: dict[tuple[Kind, str], list[dict[str, Any]]] = defaultdict(list)
        for kind, row in files.rows(spool.read_bytes(), erasures, unreadable=bad.append):
            if kind == "feedback":
                row = _of_erased(files, row, late)
            rows[kind, day_of(row.get("at"))].append(row)
            erased[kind] += "erased_at" in row
        make: list[tuple[Path, Path]] = []
        for (kind, day), some in sorted(rows.items()):
            content = tables.merged(kind, [tables.table(kind, some, bad.append)])
            make += _made(files, kind, day, content)
        if bad:
            _log.error("%s: %d lines are torn or of another shape, and left out", spool.name, len(bad))
        files.change(make, [spool])
    return erased


def _of_erased(files: AnswerFolder, row: dict[str, Any], late: Sequence[Erasure]) -> dict[str, Any]:
    """Feedback without its texts, where it was given before its answer's caller was erased."""
    orders = {o.caller: o for o in late if o.caller and (row.get("at") or 0.0) <= o.at}
    if not orders or row.get("erased_at"):
        return row
    answer = answers.find(files.path, row["id"]) or {}
    order = orders.get(str(answer.get("caller")))
    return row | dict.fromkeys(TEXTS["feedback"]) | {"erased_at": order.at} if order else row


def _made(files: AnswerFolder, kind: Kind, day: str, content: Any) -> list[tuple[Path, Path]]:
    """A finished file of a table, and where it belongs; none of an empty one."""
    if not content.num_rows:
        return []
    made, target = files.new_file(kind, day)
    tables.write(content, made)
    return [(made, target)]


@dataclass(frozen=True)
class Days:
    """How long rows are kept, on a day."""

    today: date
    keep: int
    by_project: Mapping[str, int]

    def first(self, project: str) -> str:
        """The oldest day of which a project's rows are kept."""
        return str(self.today - timedelta(days=self.by_project.get(project, self.keep)))

    @property
    def bounds(self) -> tuple[str, str]:
        """The oldest day of which anybody's rows are kept, and the oldest of which everybody's are."""
        each = [self.first(""), *map(self.first, self.by_project)]
        return min(each), max(each)


def _prune(files: AnswerFolder, days: Days) -> None:
    """Drop what is past its days: once a day, and when the days change."""
    state = json.dumps([str(days.today), days.keep, dict(days.by_project)], sort_keys=True).encode()
    marker = files.path / "pruned"
    if marker.exists() and marker.read_bytes() == state:
        return
    oldest, whole = days.bounds
    for kind in KINDS:
        for day, paths in files.days(kind):
            if day < oldest:
                files.change([], paths)
            for path in paths if oldest <= day < whole else ():
                _drop_projects(files, kind, path, days)
    if not files.spools() and files.orders.exists():  # nothing is left that an old order could apply to
        young = [o for o in files.erasures() if o.at > time.time() - 86400]
        write_whole(files.orders, b"".join(map(order_line, young)))
    write_whole(marker, state)


def _drop_projects(files: AnswerFolder, kind: Kind, path: Path, days: Days) -> None:
    """Of one file, drop the rows of those projects whose days are over."""
    day = path.parent.name.removeprefix("day=")
    projects = pc.fill_null(tables.read(kind, path, ["project"])["project"], "")
    over = [p for p in pc.unique(projects).to_pylist() if day < days.first(p)]
    if over:
        keep = pc.invert(pc.is_in(projects, pa.array(over, pa.string())))
        files.change(_made(files, kind, day, tables.read(kind, path).filter(keep)), [path])


def _merge(files: AnswerFolder, today: str) -> None:
    """Few files a day, so that an id is found soon."""
    for kind in KINDS:
        for day, paths in files.days(kind):
            small = sorted((p.stat().st_size, p) for p in paths)
            small = [one for one in small if one[0] < _SMALL_BYTES]
            if len(small) < (_MANY if day >= today else 2):
                continue
            group: list[Path] = []
            size = 0
            for bytes_, path in small:
                group.append(path)
                size += bytes_
                if size >= _SMALL_BYTES or path == small[-1][1]:
                    if len(group) > 1:
                        whole = tables.merged(kind, [tables.read(kind, one) for one in group])
                        files.change(_made(files, kind, day, whole), group)
                    group, size = [], 0


def _erase(files: AnswerFolder, kind: Kind, order: Erasure, ids: set[str]) -> tuple[int, set[str]]:
    """Erase in the Parquet files of a kind. Returns how many rows lost texts, and all ids it covers."""
    count, covered = 0, set(ids)
    known = pa.array(sorted(ids), pa.string())
    for path in [path for _, paths in files.days(kind) for path in paths]:
        by_caller = order.caller and tables.may_hold(path, "caller", [order.caller])
        by_id = ids and (len(ids) > _MANY or tables.may_hold(path, "id", sorted(ids)))
        if not by_caller and not by_id:
            continue
        keys = tables.read(kind, path, ["id", "caller", "at"])
        mask = pc.is_in(keys["id"], known)
        if order.caller:
            mask = pc.or_(mask, pc.fill_null(pc.equal(keys["caller"], order.caller), False))
        mask = pc.and_(mask, pc.less_equal(pc.fill_null(keys["at"], 0.0), order.at))
        if not pc.any(mask).as_py():
            continue
        covered.update(keys["id"].filter(mask).to_pylist())
        content = tables.read(kind, path)
        mask = pc.and_(mask, tables.has_texts(kind, content))
        if gone := pc.sum(mask).as_py():
            content = tables.without_texts(kind, content, mask, order.at)
            files.change(_made(files, kind, path.parent.name.removeprefix("day="), content), [path])
            count += gone
    return count, covered


def main(argv: list[str] | None = None) -> int:
    """Tidy one log. Exit 1 where the disk is full, say."""
    parser = argparse.ArgumentParser(prog="python -m ftaas_pipelines.serving.answer_upkeep")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep-days", type=int, default=90)
    parser.add_argument("--by-project", type=json.loads, default={})
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(name)s: %(message)s")
    pa.set_cpu_count(1)
    try:
        tidy(options.folder, options.keep_days, options.by_project)
    except OSError as error:
        _log.error("%s: %s", options.folder, error.strerror)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
