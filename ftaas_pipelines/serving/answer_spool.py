"""One spool file: rows as JSON lines, appended whole or not at all."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from ftaas_pipelines.serving.answer_files import AnswerFolder, Kind

_SYNC_S = 1.0
Write = Callable[[int, memoryview], int]
"""As `os.write`."""


class Spool:
    """The spool file that this process appends to; there is none until something is appended."""

    def __init__(self, files: AnswerFolder, write: Write = os.write):
        self._files, self._write = files, write
        self._descriptor: int | None = None
        self._synced = 0.0
        self.rows = self.bytes = 0
        self.since = 0.0  # monotonic seconds; when the present file was begun

    def append(self, lines: Sequence[bytes]) -> None:
        """Add lines. They outlive this process at once, and a power cut within about a second.

        Raises:
            OSError: the disk is full, say; none of them is there.
        """
        if not lines:
            return
        if self._descriptor is None:
            self._descriptor = self._files.open_spool()
            self.since = time.monotonic()
        data = b"".join(lines)
        left = memoryview(data)
        try:
            while left:
                left = left[self._write(self._descriptor, left) :]
        except OSError:
            if len(left) != len(data):
                self._take_back()
            raise
        self.bytes += len(data)
        self.rows += len(lines)
        now = time.monotonic()
        if now - self._synced >= _SYNC_S:
            self._synced = now
            with contextlib.suppress(OSError):  # the lines are in the file: writing them again helps nobody
                os.fdatasync(self._descriptor)

    def _take_back(self) -> None:
        """Cut off half of an append: it is written again, and would be there twice."""
        descriptor = self._descriptor
        assert descriptor is not None
        try:
            os.ftruncate(descriptor, self.bytes)
        except OSError:
            self.seal()  # whoever reads it goes by the rows' ids

    def seal(self) -> bool:
        """Let go of the file, so that Parquet is made of it. False: there was none."""
        if self._descriptor is None:
            return False
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        self._descriptor, self.rows, self.bytes = None, 0, 0
        return True


def line(kind: Kind, row: Any, as_dict: Callable[[Any], Mapping[str, Any]]) -> bytes:
    """A row as a line of a spool.

    Raises:
        TypeError: it is no JSON at all.
    """
    try:
        return orjson.dumps({kind: row}, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # half of a surrogate pair, which is no UTF-8: replaced
        return orjson.dumps({kind: {k: _plain(v) for k, v in as_dict(row).items()}}) + b"\n"


def _plain(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
