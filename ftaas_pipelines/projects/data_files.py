"""Which files a source's `path` names: one file, a glob or a folder. They are read where they lie."""

import fnmatch
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ftaas_pipelines.errors import InputInvalid

NO_DATA = "the data file is not there"
SUFFIXES = ("csv", "tsv", "json", "jsonl", "ndjson", "parquet", "arrow", "feather", "txt")
_DATA = re.compile(rf"\.({'|'.join(SUFFIXES)})(\.(gz|zst|zstd))?$", re.IGNORECASE)
_DO = "put it there or mend the path"


def suffix(name: str) -> str:
    """The end of a name that says what the file holds, in lower case ('.jsonl.gz'), or ''."""
    found = _DATA.search(name)
    return found.group().lower() if found else ""


def is_data(name: str) -> bool:
    """Whether a file of a folder is data by its name; hidden, half-copied and temporary ones are not."""
    return not name.startswith((".", "~")) and bool(suffix(name))


def find(folder: Path, named: str) -> list[Path]:
    """The files that a `path` names, sorted, symbolic links resolved, each once.

    Args:
        folder: the project's; relative paths count from it.
        named: a file, a glob (`data/**/*.jsonl`) or a folder, whose data files are taken at every depth.

    Raises:
        InputInvalid: there is none, a folder cannot be read, or a symbolic link leads out of the
            project folder (for a path outside of it: out of the folder it names).
    """
    at = Path(os.path.normpath(folder / Path(named).expanduser()))
    if at.is_file():
        base, pattern = at.parent, [glob.escape(at.name)]
    elif at.is_dir():
        base, pattern = at, ["**"]
    elif glob.has_magic(named):
        fixed = next(i for i, part in enumerate(at.parts) if glob.has_magic(part))
        base, pattern = Path(*at.parts[:fixed]), list(at.parts[fixed:])
    else:
        raise InputInvalid(NO_DATA, str(at), do=_DO)
    root = (folder if base.is_relative_to(folder) else base).resolve()
    found = {_inside(path, root) for path in _matching(base, pattern, root, set())}
    if not at.is_file():
        found = {path for path in found if is_data(path.name)}
    if not found:
        do = f"{_DO}; data ends in {', '.join(SUFFIXES)}, each also with .gz or .zst"
        raise InputInvalid("no data file is there", str(at), do=do)
    return sorted(found)


def _matching(folder: Path, pattern: list[str], root: Path, seen: set[Path]) -> Iterator[Path]:
    """The files below a folder whose path from it matches; a folder reached twice by `**` is walked once."""
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        if _inside(folder, root) in seen:
            return
        seen.add(folder.resolve())
        yield from _matching(folder, rest or ["*"], root, set())
        for entry in _entries(folder):
            if entry.is_dir():
                yield from _matching(entry, pattern, root, seen)
        return
    for entry in _entries(folder):
        if fnmatch.fnmatchcase(entry.name, first):
            if rest and entry.is_dir():
                yield from _matching(entry, rest, root, set())
            elif not rest and (entry.is_file() or entry.is_symlink() and not entry.exists()):
                yield entry


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "~")))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputInvalid("cannot be read", str(folder), error.strerror or "", "make it readable") from None


def _inside(path: Path, root: Path) -> Path:
    real = path.resolve()
    if not real.is_relative_to(root):
        do = "copy the data into the project folder, or name the place it leads to"
        raise InputInvalid("is a symbolic link that leads out of its folder", str(path), str(real), do)
    if not real.exists():
        raise InputInvalid("is a symbolic link to nothing", str(path), str(real), "mend or remove it")
    return real
