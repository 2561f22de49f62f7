"""The supervisor's log: a JSON object a line, on standard output. Who logs never waits for the disk.

    {"time": "2026-11-28T12:00:00.123Z", "level": "info", "logger": "ftaas.request", "event": "request",
     "response_id": "chatcmpl-…", "status": 200, …}

What a line is about beside its event is given as `extra={"about": {…}}`. Standard output is the file
`supervisor.log`, which is bounded here, or what a container makes of it.
"""

import contextlib
import json
import logging
import os
import shutil
import threading
import traceback
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from ftaas_pipelines.serving.passage import Passage

_STDOUT = 1
_GATHER_S = 0.05  # lines of so long go in one write
_ROOM = 20_000  # lines that may wait for a disk that is slow
_FLUSH_S = 2.0  # longest that the end of the process waits for it
# Their failures may quote what a caller sent: of those only the kind and the place are told.
_PRIVATE = ("ftaas.request", "uvicorn", "asyncio")
_request = logging.getLogger("ftaas.request")
_HEAD = ("time", "level", "logger", "event")


def ended(passage: "Passage") -> None:
    """A request's line: its id finds it. No text and no key."""
    about = {
        "response_id": passage.id,
        "kind": passage.kind,
        "status": passage.status,
        "code": passage.code,
        "project": passage.project_label,
        "release": passage.release[:12],
        "variant": passage.variant,
        "ms": round(passage.total_s * 1000, 1),
        "trace_id": passage.trace.id if passage.trace else "",
    }
    level = logging.WARNING if passage.status >= 500 else logging.INFO
    _request.log(level, "request", extra={"about": about})


def line(record: logging.LogRecord) -> bytes:
    """A record as it stands in the log."""
    private = record.name.startswith(_PRIVATE)
    event = record.getMessage().rstrip()
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    row: dict[str, Any] = {
        "time": at.replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": event.partition("\n")[0] if private else event,
    }
    row |= getattr(record, "about", {})
    if record.exc_info and (failure := record.exc_info[1]):
        row |= _failure(failure, private)
    try:
        return orjson.dumps(row, default=str) + b"\n"
    except TypeError:  # half a character, which JSON can write and UTF-8 cannot
        return json.dumps(row, default=str, separators=(",", ":")).encode() + b"\n"


def _failure(failure: BaseException, private: bool) -> dict[str, Any]:
    frames = traceback.extract_tb(failure.__traceback__)[-12:]
    row: dict[str, Any] = {
        "error": type(failure).__name__,
        "at": [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames],
    }
    return row if private else row | {"said": str(failure)}


def readable(text: str) -> str:
    """A line of the log for people; one that is not JSON (a crash of Python's) stays as it is."""
    try:
        row: Any = json.loads(text)
        head = f"{row['time']} {row['event']}"
    except (ValueError, KeyError, TypeError):
        return text
    rest = [f"{key}={value}" for key, value in row.items() if key not in _HEAD and value not in ("", None)]
    return " ".join([head, *rest])


def is_request(text: str) -> bool:
    """Whether a line tells of a request: there are many of those."""
    return '"event":"request"' in text


class Lines(logging.Handler):
    """Writes lines from a thread of its own. What finds no room, or cannot be written, is counted.

    Args:
        descriptor: what is written to.
        file: what that is the descriptor of, perhaps; then it is kept below `most_bytes`, and as many bytes
            of older lines in each of `older` files beside it (`supervisor.log.1`, …).

    Attributes:
        dropped: lines that were lost.
    """

    def __init__(self, descriptor: int, file: Path | None = None, most_bytes: int = 16 << 20, older: int = 3):
        super().__init__()
        self.dropped = 0
        self._descriptor, self._file, self._most, self._older = descriptor, file, most_bytes, older
        self._waiting: deque[bytes] = deque()
        self._writing = threading.Lock()
        self._wake, self._closing = threading.Event(), threading.Event()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._waiting) >= _ROOM:
            self.dropped += 1
            return
        try:
            self._waiting.append(line(record))
        except Exception:  # an argument that cannot be formatted: the line is lost, never who logged it
            self.dropped += 1
        self._wake.set()

    def flush(self) -> None:
        """Write what waits; gives up where the disk does not take it."""
        if self._writing.acquire(timeout=_FLUSH_S):
            try:
                self._write()
            finally:
                self._writing.release()

    def close(self) -> None:
        self._closing.set()
        self._wake.set()
        self.flush()
        super().close()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._closing.wait(_GATHER_S)
            self._wake.clear()
            with self._writing:
                self._write()

    def _write(self) -> None:
        lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
        left = memoryview(b"".join(lines))
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
            self._turn()
        except OSError:  # the disk is full, nobody reads the pipe any more
            self.dropped += bytes(left).count(b"\n")

    def _turn(self) -> None:
        """Begin the file anew when it is large. Copied and cut: other processes have it open, too."""
        if self._file is None or os.fstat(self._descriptor).st_size <= self._most:
            return
        with contextlib.suppress(FileNotFoundError):
            if not os.path.samestat(os.fstat(self._descriptor), self._file.stat()):
                return
        older = (self._file.with_name(f"{self._file.name}.{n + 1}") for n in range(self._older))
        names = [self._file, *older]
        for to, name in zip(names[:1:-1], names[-2:0:-1], strict=True):
            if name.exists():
                name.replace(to)
        shutil.copyfile(names[0], names[1])
        os.ftruncate(self._descriptor, 0)


_lines: Lines | None = None


def start(file: Path | None = None) -> None:
    """From now on all of this process logs as JSON; `logging` itself flushes at its end.

    Args:
        file: the file that standard output is, perhaps: one process keeps it small.
    """
    global _lines
    _lines = Lines(_STDOUT, file)
    logging.basicConfig(level=logging.WARNING, handlers=[_lines], force=True)
    logging.getLogger("ftaas").setLevel(logging.INFO)
    logging.captureWarnings(True)


def dropped() -> int:
    """Lines that were lost since `start`."""
    return _lines.dropped if _lines else 0
