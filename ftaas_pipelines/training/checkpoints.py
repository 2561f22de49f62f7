"""Checkpoints that are whole: a marker, written last, says so. One without it is never resumed from."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from ftaas_pipelines.training import ranks

MARKER = "whole.json"


def mark(folder: Path, seconds: float) -> None:
    """Declare a checkpoint whole, once all its files are on the disk.

    Args:
        seconds: training time spent to reach it, over all attempts.
    """
    sizes: dict[str, int] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    temporary = folder / f".{MARKER}"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"seconds": seconds, "sizes": sizes}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MARKER)


def newest(work: Path) -> Path | None:
    """The newest whole checkpoint in a work folder; rank 0 removes all that are not whole."""
    folders = sorted(work.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    whole = [folder for folder in folders if _is_whole(folder)]
    for folder in folders:
        if folder not in whole and ranks.first():
            shutil.rmtree(folder)
    return whole[-1] if whole else None


def seconds(folder: Path | None) -> float:
    """Training time that a checkpoint already cost; 0 for none."""
    return float(_read(folder)["seconds"]) if folder else 0.0


def _is_whole(folder: Path) -> bool:
    try:
        sizes: dict[str, int] = _read(folder)["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MARKER).read_text("utf-8"))
