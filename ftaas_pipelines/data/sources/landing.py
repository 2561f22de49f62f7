"""What a source's files are right now. A remote place becomes files here first: it is landed.

    home/landing/<project>/<source>/current.json      which landing holds, and the one before
    home/landing/<project>/<source>/<id>/             the files and landing.json; the last two stay
    home/landing/<project>/<source>/.<…>/             being written; never visible as a landing

`landed` looks at this disk alone; `land` looks at the place and fetches what changed. Files of a `path`
are read where they lie: for them both say the same, and there is no landing.
"""

import errno
import json
import os
import shutil
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ftaas_pipelines.data.sources import files
from ftaas_pipelines.data.sources.fetched import Fetched
from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.projects import data_files
from ftaas_pipelines.projects.dataset import Source
from ftaas_pipelines.store import Store, digest_of, hold

_RECORD = "landing.json"


@dataclass(frozen=True, kw_only=True)
class Landing(Fetched):
    """A source's files on this disk.

    Attributes:
        sha256: of its one file, or of the sorted digests of its files.
        place: where it came from, as people name it.
        declared: digest of what the YAML says of the place; another place is another landing.
        looked_at: seconds since 1970 of the last look at the place.
    """

    sha256: str
    place: str
    declared: str = ""
    looked_at: float = 0.0

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


def land(
    source: Source, folder: Path, root: Path, younger_than_s: float = 0.0, wait_s: float = 3600
) -> Landing:
    """Look at the source's place, fetch what changed, and say what its files are now.

    Args:
        folder: the project's.
        root: where the project's landings are kept.
        younger_than_s: a look that is younger will do.
        wait_s: how long to wait for another process that lands this source.

    Raises:
        InputInvalid: the place, its data or a secret is wrong. Nothing is taken over.
        FtaasError: the place cannot be reached, or broke off. Nothing is taken over.
    """
    if source.in_place:
        return _in_place(source, folder)
    shelf = root / source.name
    with hold(root / f"{source.name}.lock", wait_s):
        before = _read(shelf, _declared(source))
        if before and time.time() - before.looked_at < younger_than_s:
            return before
        try:
            return _take_over(source, folder, shelf, before)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                do = "free space, then run the same command again"
                raise InputInvalid("the disk is full", str(shelf), do=do) from None
            raise FtaasError("cannot be written", str(shelf), error.strerror or str(error)) from error


def landed(source: Source, folder: Path, root: Path) -> Landing | None:
    """What the source's files are by what lies on this disk; None when nothing whole was landed.

    Raises:
        InputInvalid: a file of a `path` is not there, or is a link that leads out.
        FtaasError: such a file changed while being read.
    """
    if source.in_place:
        return _in_place(source, folder)
    return _read(root / source.name, _declared(source))


def _in_place(source: Source, folder: Path) -> Landing:
    found = data_files.find(folder, source.path or "")
    return Landing(files=found, sha256=files.digest_all(found), place=source.place)


def _take_over(source: Source, folder: Path, shelf: Path, before: Landing | None) -> Landing:
    """Fetch into a hidden folder, then rename it: a kill at any moment leaves the landing before."""
    shelf.mkdir(parents=True, exist_ok=True)
    for left in shelf.glob(".*"):  # by a landing that was killed: the lock is ours
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    draft = shelf / f".{uuid.uuid4().hex}"
    draft.mkdir()
    looked_at = time.time()
    try:
        fetched = _fetch(source, folder, draft, before)
        if fetched is None:
            assert before is not None, "only a known place is unchanged"
            now = replace(before, looked_at=looked_at)
            _note(shelf, before.files[0].parent.name, now)
            return now
        for path in fetched.files:
            with path.open("rb") as written:
                os.fsync(written.fileno())
        digests = {path.name: files.digest(path) for path in fetched.files}
        declared = _declared(source)
        name = digest_of([declared, digests])[:24]
        target = shelf / name
        now = Landing(
            files=[target / path.name for path in fetched.files],
            token=fetched.token,
            rows=fetched.rows,
            watermark=fetched.watermark,
            sha256=files.digest_all(fetched.files),
            place=source.place,
            declared=declared,
            looked_at=looked_at,
        )
        _note(shelf, draft.name, now)
        if target.is_dir():  # the same bytes again
            for path in fetched.files:
                path.replace(target / path.name)
            _note(shelf, name, now)
        else:
            draft.rename(target)
        _point(shelf, name)
        return now
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _fetch(source: Source, folder: Path, into: Path, before: Landing | None) -> Fetched | None:
    # Each brings libraries that a project without such a source need not load.
    if source.http:
        from ftaas_pipelines.data.sources import http

        return http.fetch(source.http, into, before)
    if source.sql:
        from ftaas_pipelines.data.sources import sql

        return sql.fetch(source.sql, into, before)
    if source.huggingface:
        from ftaas_pipelines.data.sources import huggingface

        return huggingface.fetch(source.huggingface, folder, into, before)
    from ftaas_pipelines.data.sources import storage

    return storage.fetch(source, into, before)


def _declared(source: Source) -> str:
    """What names the place. How one gets in, and for how long one waits, does not."""
    place = source.model_dump(
        mode="json",
        include={"path", "http", "sql", "huggingface"},
        exclude={"http": {"headers", "timeout_seconds"}},
    )
    return digest_of(place)


def _note(shelf: Path, name: str, landing: Landing) -> None:
    record: dict[str, Any] = {**asdict(landing), "files": [path.name for path in landing.files]}
    Store(shelf).write_json(f"{name}/{_RECORD}", record)


def _point(shelf: Path, name: str) -> None:
    """Let this landing hold. The one before stays, for whoever reads it now; older ones go."""
    pointer = _json(shelf / "current.json") or {}
    if pointer.get("landing") != name:
        pointer = {"landing": name, "before": pointer.get("landing")}
        Store(shelf).write_json("current.json", pointer)
    for old in shelf.iterdir():
        if old.is_dir() and not old.name.startswith(".") and old.name not in pointer.values():
            shutil.rmtree(old, ignore_errors=True)


def _read(shelf: Path, declared: str) -> Landing | None:
    pointer = _json(shelf / "current.json")
    if pointer is None:
        return None
    folder = (shelf / pointer["landing"]).resolve()
    record = _json(folder / _RECORD)
    if record is None or record["declared"] != declared:
        return None
    record["files"] = [folder / name for name in record["files"]]
    found = Landing(**record)
    whole = all(path.is_file() for path in found.files) and files.digest_all(found.files) == found.sha256
    return found if whole else None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
