"""Attempts in waves, each kept as soon as it is done: a killed job goes on, and a budget holds.

FILE.part is a journal: first what the job is, then a line an attempt with its rows, what was dropped and
what it cost. A line cut off by a kill is taken away. When the job is done its rows become FILE.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ftaas_pipelines.data.synthesis.endpoint import Usage
from ftaas_pipelines.errors import FtaasError, InputInvalid, Refused

_VAIN = 20  # attempts in a row, beside those under way, that may bring nothing
_GO_ON = "run the same command to go on"


@dataclass
class Entry:
    """One attempt and what came of it.

    Attributes:
        rows: what goes into the file.
        dropped: what does not, by reason.
        rounds: of each row, how many times a model has rewritten what it began as.
        refusal: the endpoint's own code where it refused the request.
    """

    attempt: int
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    dropped: dict[str, int] = field(default_factory=dict[str, int])
    usage: Usage = field(default_factory=Usage)
    rounds: list[int] = field(default_factory=list[int])
    refusal: str = ""


class Draft:
    """The journal of one job. Held by one process at a time.

    Attributes:
        new: whether nothing was there yet.
        entries: what was attempted, in order.
        count: rows of all entries.
        dropped: what they dropped, by reason.
        usage: what they used.
    """

    def __init__(self, out: Path, journal: BinaryIO, entries: list[Entry], new: bool):
        self.out, self._journal, self.new = out, journal, new
        self.entries = list[Entry]()
        self.count = 0
        self.dropped: Counter[str] = Counter()
        self.usage = Usage()
        for entry in entries:
            self._count(entry)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for entry in self.entries for row in entry.rows]

    def add(self, entry: Entry) -> None:
        """Keep an attempt, on the disk before anything else happens."""
        self._write(asdict(entry))
        self._count(entry)

    def begin(self, job: dict[str, Any]) -> None:
        self._write(job)

    def finish(self, count: int | None = None) -> Path:
        """The first `count` rows as JSONL under the file's own name; the journal goes."""
        ready = self.out.with_name(f".{self.out.name}.ready")
        with ready.open("w", encoding="utf-8") as file:
            for row in self.rows[:count]:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        ready.replace(self.out)
        part_of(self.out).unlink()
        return self.out

    def _count(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.count += len(entry.rows)
        self.dropped.update(entry.dropped)
        self.usage.add(entry.usage)

    def _write(self, value: dict[str, Any]) -> None:
        try:
            self._journal.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
        except OSError as error:
            raise _unwritable(part_of(self.out), error) from error


def part_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.part")


@contextmanager
def opened(out: Path, job: dict[str, Any]) -> Iterator[Draft]:
    """The job's journal, new or as a killed process left it.

    Args:
        job: all that decides what the rows are. How many are wanted and what they may cost is no part.

    Raises:
        InputInvalid: the file is there already, or what is there is of another job.
        FtaasError: another process writes it, or it cannot be written.
    """
    part = part_of(out)
    if out.exists() and not part.exists():
        raise InputInvalid("the file is already there", str(out), do="name another --out or delete it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        journal = part.open("a+b")
    except OSError as error:
        raise _unwritable(part, error) from error
    with journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            do = "wait for it, or name another --out"
            raise FtaasError("another process writes this", str(part), do=do) from None
        lines = _whole_lines(journal)
        if lines and json.loads(lines[0]) != job:
            do = "give the options it was begun with, name another --out, or delete it"
            raise InputInvalid("holds rows of another job", str(part), do=do)
        draft = Draft(out, journal, [_entry(line) for line in lines[1:]], new=not lines)
        if draft.new:
            draft.begin(job)
        yield draft


def _unwritable(part: Path, error: OSError) -> FtaasError:
    do = "make room or mend it, then run the same command again: it goes on"
    return FtaasError("cannot be written", str(part), error.strerror or type(error).__name__, do)


def _entry(line: bytes) -> Entry:
    fields: dict[str, Any] = json.loads(line)
    used: dict[str, Any] = fields.pop("usage")
    return Entry(**fields, usage=Usage(**used))


def _whole_lines(journal: BinaryIO) -> list[bytes]:
    """The journal's lines; what a kill cut off is taken away."""
    journal.seek(0)
    data = journal.read()
    whole = data.rfind(b"\n") + 1
    journal.truncate(whole)
    return data[:whole].splitlines()


@dataclass(frozen=True)
class Limits:
    """How far a job may go.

    Attributes:
        parallel: requests at a time. Part of the job: later attempts build on the rows of earlier waves.
        max_cost_usd: of the whole job; None for no limit. Attempts that are under way are let through.
    """

    parallel: int = 1
    max_cost_usd: float | None = None


class Task(Protocol):
    """What is attempted."""

    def attempt(self, number: int, before: list[Entry]) -> Entry:
        """Ask for something, in any thread. `before`: the entries of earlier waves."""
        ...

    def accept(self, entry: Entry) -> Entry:
        """Keep of an attempt what may be kept; called in order, in one thread."""
        ...

    def wanted(self, draft: Draft) -> int:
        """How many more attempts there may be; 0 when the job is done."""
        ...


Progress = Callable[[Draft], None]


def carry_out(task: Task, draft: Draft, limits: Limits, progress: Progress) -> None:
    """Attempt until nothing more is wanted.

    The rows depend on the job, the endpoint's answers and nothing else: neither on which of several
    requests is answered first nor on where an earlier process was killed.

    Raises:
        Refused: the budget is reached.
        FtaasError: the endpoint fails, or brings nothing new any more.
        InputInvalid: the endpoint refuses every request.
    """
    vain, pool = 0, ThreadPoolExecutor(limits.parallel)
    try:
        while wanted := task.wanted(draft):
            _check_budget(draft, limits)
            number = len(draft.entries)
            first = number // limits.parallel * limits.parallel
            wave = range(number, min(number + wanted, first + limits.parallel))
            before = draft.entries[:first]
            for entry in pool.map(lambda n, before=before: task.attempt(n, before), wave):
                draft.add(task.accept(entry))
                useful = entry.rows or not entry.refusal and task.wanted(draft) < wanted
                vain = 0 if useful else vain + 1
                progress(draft)
            if vain >= _VAIN + limits.parallel:
                raise _brings_nothing(draft)
    finally:
        pool.shutdown(cancel_futures=True)


def _check_budget(draft: Draft, limits: Limits) -> None:
    """Raises when the next wave could go over the budget, by the dearest attempt so far."""
    if limits.max_cost_usd is None:
        return
    spent, kept = draft.usage.cost_usd, f"{draft.count} rows are kept in {part_of(draft.out)}"
    if draft.usage.unmetered:
        do = "leave out --max-cost-usd, or use an endpoint that says it"
        raise Refused("the endpoint does not say what a call used: no budget can hold", kept, do=do)
    dearest = max((entry.usage.cost_usd for entry in draft.entries), default=0.0)
    if spent >= limits.max_cost_usd or spent + dearest * limits.parallel > limits.max_cost_usd:
        do = f"raise --max-cost-usd and {_GO_ON}; {kept}"
        raise Refused("the budget is reached", "--max-cost-usd", f"{spent:.6f} USD spent", do)


def _brings_nothing(draft: Draft) -> FtaasError:
    tried = draft.entries[-_VAIN:]
    counts: Counter[str] = Counter()
    for entry in tried:
        counts.update(entry.dropped)
    got = ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items()))
    refusals = sorted({entry.refusal for entry in tried if entry.refusal})
    if refusals and all(entry.refusal for entry in tried):
        do = f"mend the request's options, then {_GO_ON}"
        return InputInvalid("the endpoint refuses every request", draft.out.name, "; ".join(refusals), do)
    do = f"use a stronger model or more seeds; {draft.count} rows are kept in {part_of(draft.out)}"
    return FtaasError(f"the last {len(tried)} attempts brought no row", draft.out.name, got, do)
