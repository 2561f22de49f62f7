"""The inference log, writing: what was asked and answered, and what people say of it. Never slows an answer.

`put` adds a row to a bounded list. One thread appends it to a spool file within a tenth of a second. Each
minute or 5,000 rows the spool is sealed, and a process of its own makes Parquet of it, so that the gateway
loads no pyarrow for that.

answer_spool.py    one file of JSON lines
answer_files.py    the folder: locks, and how files come and go
answer_tables.py   rows as Arrow and Parquet
answer_upkeep.py   Parquet of spools, days that are over, erasures
answers.py         reading
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftaas_pipelines.serving.answer_files import AnswerFolder
from ftaas_pipelines.serving.answer_spool import Spool, Write, line

_log = logging.getLogger("ftaas.inference_log")
_GATHER_S = 0.05  # rows of so long go in one write
_LOOK_S = 1.0  # how often an idle log looks whether there is something to do
_AGAIN_S = 1.0  # after a write failed
_SEAL_BYTES = 32 << 20
_UPKEEP_S = 3600.0  # also where nothing comes: days end
_UPKEEP_AGAIN_S = 60.0


@dataclass(frozen=True)
class Answered:
    """One request, answered or refused.

    Attributes:
        at: UTC seconds since the epoch, when it came.
        variant: "", "canary", "a", "b" or "shadow".
        caller: the id of a key or person, as `access` knows it.
        status: of HTTP; `error` is the refusal's code, or "".
        guard: {rule, kind, action, count, where} each; never a value.
        shadow_of: the id of the answer that was given, where this one was only made for comparison.
        unit: in an A/B test, a pseudonym of whose requests stay with one variant; another in every test.
        prompt: JSON of the messages; like `answer` only where the policy keeps texts, and redacted.
    """

    id: str
    at: float
    environment: str
    project: str
    release: str
    adapter_digest: str
    base: str
    variant: str
    caller: str
    kind: str
    status: int
    error: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    total_ms: float
    queue_ms: float
    first_token_ms: float
    guard: list[dict[str, Any]]
    shadow_of: str = ""
    unit: str = ""
    prompt: str | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Feedback:
    """What a caller says of the answer `id`. `at`: UTC s; `thumb`: "up", "down" or ""."""

    id: str
    at: float
    caller: str
    thumb: str = ""
    correction: str = ""
    comment: str = ""
    project: str = ""


class InferenceLog:
    """Writes one environment's log from this process; others may write beside it.

    Attributes:
        dropped: rows that found no room, or could not be written down at all.
        waiting: rows taken and not yet written down.
        failing: why rows cannot be written at the moment; "" when they can.
    """

    def __init__(
        self,
        folder: Path,
        keep_days: int = 90,
        by_project: Callable[[], Mapping[str, int]] = dict,
        *,
        room: int = 20_000,
        room_characters: int = 64 << 20,
        seal_rows: int = 5_000,
        seal_s: float = 60.0,
        write: Write = os.write,
    ):
        """Nothing is written before `start`.

        Args:
            keep_days: days that rows are kept; `by_project` says it for projects that differ.
            room: rows that may wait to be written, and `room_characters` of their texts.
            write: as `os.write`; a test passes one that fails.
        """
        self.folder = folder
        self.dropped = self.waiting = 0
        self.failing = ""
        self._files = AnswerFolder(folder)
        self._keep_days, self._by_project = keep_days, by_project
        self._room, self._room_characters = room, room_characters
        self._seal_rows, self._seal_s = seal_rows, seal_s
        self._spool = Spool(self._files, write)
        self._lock = threading.Lock()
        self._rows: list[Answered | Feedback] = []
        self._characters = 0  # of the texts of rows that wait
        self._lines: list[bytes] = []
        self._taken_rows = self._taken_characters = 0
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._retry_at = self._upkeep_at = 0.0
        self._orders = self._stamp()
        self._upkeep: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to write; first of all what killed processes left becomes Parquet."""
        self._upkeep_at = 0.0 if self._files.spools() else time.monotonic() + _UPKEEP_AGAIN_S
        self._thread = threading.Thread(target=self._run, name="inference-log", daemon=True)
        self._thread.start()

    def put(self, row: Answered | Feedback) -> bool:
        """Take a row. Never waits and never fails: False, and counted, where there is no room."""
        size = _characters(row)
        with self._lock:
            if (
                self._closing.is_set()
                or self.waiting >= self._room
                or self._characters + size > self._room_characters
            ):
                self.dropped += 1
                return False
            self._rows.append(row)
            self.waiting += 1
            self._characters += size
        self._wake.set()
        return True

    def close(self) -> None:
        """Write down all that was taken, and end. Idempotent."""
        with self._lock:  # whoever put a row before is heard
            self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        if self.waiting:
            _log.error("%d rows are lost: %s", self.waiting, self.failing or "the log was not started")
            self.dropped, self.waiting = self.dropped + self.waiting, 0
        if self._upkeep is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._upkeep.wait(5)
            self._upkeep.terminate()  # no harm: the next start goes on
            self._upkeep.wait()
            self._upkeep = None

    # -- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing.is_set():
            if self._wake.wait(_LOOK_S):
                self._closing.wait(_GATHER_S)
            self._wake.clear()
            self._step()
        self._retry_at = 0.0
        self._step()
        self._spool.seal()

    def _step(self) -> None:
        """Write what came; whatever goes wrong is said, and tried again."""
        now = time.monotonic()
        if (stamp := self._stamp()) != self._orders:  # texts in this spool are to be erased, perhaps
            self._orders = stamp
            self._seal()
        try:
            if now >= self._retry_at:
                self._take()
                self._append()
        except Exception as error:
            why = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
            if why != self.failing:
                _log.error("rows cannot be written: %s; %d wait", why, self.waiting)
            self.failing, self._retry_at = why, now + _AGAIN_S
        spool = self._spool
        if spool.rows >= self._seal_rows or spool.bytes >= _SEAL_BYTES:
            self._seal()
        elif spool.rows and now - spool.since >= self._seal_s:
            self._seal()
        if not self._closing.is_set():
            self._keep_up(now)

    def _take(self) -> None:
        """Rows become lines. They count as waiting until they are in the spool."""
        with self._lock:
            rows, self._rows = self._rows, []
        for row in rows:
            self._taken_rows += 1
            self._taken_characters += _characters(row)
            kind = "answered" if isinstance(row, Answered) else "feedback"
            try:
                self._lines.append(line(kind, row, asdict))
            except Exception as error:  # one row that is no JSON at all costs no other
                self.dropped += 1
                _log.error("row %s cannot be written down: %s", row.id, error)

    def _append(self) -> None:
        self._spool.append(self._lines)
        with self._lock:
            self.waiting -= self._taken_rows
            self._characters -= self._taken_characters
        self._lines, self._taken_rows, self._taken_characters = [], 0, 0
        if self.failing:
            _log.warning("rows are written again")
        self.failing = ""

    def _seal(self) -> None:
        if self._spool.seal():
            self._upkeep_at = 0.0

    def _stamp(self) -> tuple[int, int] | None:
        try:
            stat = self._files.orders.stat()
        except OSError:
            return None
        return stat.st_size, stat.st_mtime_ns

    def _keep_up(self, now: float) -> None:
        """Have Parquet made, days dropped: by one process at a time, not more than there is need for."""
        if self._upkeep is not None:
            code = self._upkeep.poll()
            if code is None:
                return
            self._upkeep = None
            if code:
                _log.error("the log's upkeep ended with %d; it is tried again in a minute", code)
                self._upkeep_at = now + _UPKEEP_AGAIN_S
        if now < self._upkeep_at:
            return
        self._upkeep_at = now + _UPKEEP_S
        module = "ftaas_pipelines.serving.answer_upkeep"
        try:
            keep = ["--keep-days", str(self._keep_days), "--by-project", json.dumps(dict(self._by_project()))]
            self._upkeep = subprocess.Popen(
                [sys.executable, "-m", module, str(self.folder), *keep],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is not for it
            )
            os.setpriority(os.PRIO_PROCESS, self._upkeep.pid, 10)  # answers come first
        except Exception as error:  # what was written waits in its spool
            _log.error("the log's upkeep does not start: %s", error)
            self._upkeep_at = now + _UPKEEP_AGAIN_S


def _characters(row: Answered | Feedback) -> int:
    if isinstance(row, Answered):
        return len(row.prompt or "") + len(row.answer or "")
    return len(row.correction) + len(row.comment)
