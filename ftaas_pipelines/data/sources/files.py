"""Digests of data files that lie on this disk."""

import time
from collections.abc import Sequence
from pathlib import Path

from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.store import digest_of, file_digest

_SETTLED_S = 2.0  # younger than this, a second change may carry the same time: nothing is remembered
_known: dict[tuple[object, ...], str] = {}


def digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes, read again only when its size, times or place changed.

    Remembered within this process alone: 500 MB take 0.3 s, which a command may cost, but not every
    look of a sensor. The time of the last change (ctime) counts, which no program can set back.

    Raises:
        InputInvalid: it is not there or cannot be read.
        FtaasError: it changed while being read.
    """
    try:
        before = _stamp(path)
        if before not in _known:
            found = file_digest(path)
            if _stamp(path) != before:
                do = "wait until it is written, then run the same command again"
                raise FtaasError("the file changed while being read", str(path), do=do)
            if time.time() - path.stat().st_ctime < _SETTLED_S:
                return found
            _known[before] = found
        return _known[before]
    except OSError as error:
        do = "put it there or mend the path"
        raise InputInvalid("the data file cannot be read", str(path), error.strerror or "", do) from None


def digest_all(paths: Sequence[Path]) -> str:
    """The digest of one file, or of the sorted digests of several: names and order do not count."""
    found = sorted(digest(path) for path in paths)
    return found[0] if len(found) == 1 else digest_of(found)


def folder_digest(folder: Path) -> str:
    """sha256 (hex) over the names and bytes of all files of a folder (a detector's model).

    Raises:
        InputInvalid: it is no folder, or a file cannot be read.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    if not names:
        raise InputInvalid("is not a folder with a model", str(folder), do="put it there or mend the path")
    return digest_of({name: digest(folder / name) for name in names})


def _stamp(path: Path) -> tuple[object, ...]:
    stat = path.stat()
    return str(path), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
