"""A job from the asking to its end: asked for once, looked at patiently, stopped when nobody waits for it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import dagster as dg

from ftaas_pipelines.errors import FtaasError, Interrupted, Refused
from resources.providers.exporting import Export
from resources.providers.heard import Heard
from resources.providers.job import Notes, Order, Remote, State, Unreachable

T = TypeVar("T")
_TRIES = 6  # at what must be done before there is a job
_SLOWEST = 4.0  # times the poll, while a job is quiet
_LONGEST_S = 300.0  # between two tries at a provider that does not answer
_DONE = {"waiting": 0.05, "running": 0.1}  # share of the work, where the provider names none
_INTERRUPTS = (KeyboardInterrupt, dg.DagsterExecutionInterruptedError, Interrupted)


@dataclass(frozen=True)
class Pace:
    """How often to look and how long to wait. Seconds."""

    poll_s: float
    limit_s: float
    budget_s: float | None
    sleep: Callable[[float], None] = time.sleep

    def again(self, failures: int, error: Unreachable) -> float:
        """How long to leave alone a provider that did not answer: what it asked for, or ever longer."""
        grown = min(self.poll_s * 2 ** min(failures, 16), _LONGEST_S)
        return max(grown, min(error.retry_after or 0.0, _LONGEST_S))


def run(
    remote: Remote, export: Export, order: Order, heard: Heard, pace: Pace, record: Callable[[], None]
) -> str:
    """Have the job of an order done; returns what the provider calls it.

    Args:
        record: called before anything is sent: killed or not, data may have left.

    Raises:
        FtaasError: it failed or was stopped, with the provider's reason; or it took too long.
        Refused: the budget was used up; it was stopped.
        Unreachable: the provider has not answered until the time was up; the job may go on.
    """
    job: str | None = None
    try:
        job = _submit(remote, export, heard, pace, record)
        _follow(remote, job, order, heard, pace)
    except _INTERRUPTS:
        heard.told(f"interrupted: {_abandoned(remote, job)}")
        raise
    return job


def _submit(remote: Remote, export: Export, heard: Heard, pace: Pace, record: Callable[[], None]) -> str:
    """The job of an order: found, or asked for once.

    An answer that got lost may hide a job that was made, so before each try the provider is asked for it.
    """
    found = _patiently(remote.find, heard, pace)
    if found:
        heard.told(f"{remote.title}: job {found} was asked for before; following it")
        return found
    record()
    heard.progress(0.02, f"sending {len(export.files)} files to {remote.place()}")
    _patiently(lambda: remote.upload(export), heard, pace)

    def once() -> str:
        return remote.find() or remote.create()

    job = _patiently(once, heard, pace)
    heard.told(f"{remote.title}: job {job} is asked for")
    return job


def _patiently(call: Callable[[], T], heard: Heard, pace: Pace) -> T:
    for failures in range(_TRIES):
        try:
            return call()
        except Unreachable as error:
            if failures == _TRIES - 1:
                raise
            wait = pace.again(failures, error)
            heard.told(f"{error}: again in {wait:.0f} s")
            pace.sleep(wait)
    raise AssertionError  # the last try returned or raised


def _follow(remote: Remote, job: str, order: Order, heard: Heard, pace: Pace) -> None:
    """Look at a job until it is done, telling what is new."""
    notes = Notes(order.work)
    if notes.get("since") is None or notes.get("followed") != job:
        notes.keep(since=time.time(), followed=job)  # a killed launcher's successor counts on from here
    ends = notes.get("since") + min(pace.limit_s, pace.budget_s or pace.limit_s)
    failures, wait = 0, pace.poll_s
    last: State | None = None
    seen: set[str] = set()
    while True:
        try:
            state = remote.state(job)
            news = remote.news(job, seen)
            failures = 0
        except Unreachable as error:
            if time.time() > ends:
                raise
            wait, failures = pace.again(failures, error), failures + 1
            heard.told(f"{error}: again in {wait:.0f} s")
            pace.sleep(wait)
            continue
        seen |= {one.key for one in news}
        heard.news(news)
        if state != last and state.phase in _DONE:
            heard.progress(max(_DONE[state.phase], heard.share), f"{remote.title}: {state.said}")
        if state.phase == "done":
            return
        if state.phase in ("failed", "stopped"):
            what = "failed" if state.phase == "failed" else "was stopped"
            do = "mend what it names, then run the same command: that asks for a new job"
            raise FtaasError(f"the job {what}: {state.said}", f"{remote.title}, job {job}", do=do)
        if time.time() > ends:
            raise _too_long(remote, job, order, state, pace)
        wait = pace.poll_s if news or state != last else min(wait * 1.5, pace.poll_s * _SLOWEST)
        last = state
        pace.sleep(min(wait, max(ends - time.time(), 0.01)))


def _too_long(remote: Remote, job: str, order: Order, state: State, pace: Pace) -> FtaasError:
    where, stopped = f"{remote.title}, job {job}", _stopping(remote, job)
    if pace.budget_s is not None and pace.budget_s <= pace.limit_s:
        what = f"the budget of {pace.budget_s / 60:.1f} minutes is used up; {stopped}"
        return Refused(what, where, state.said, "raise budget in project.yaml, then run the same command")
    what = f"the job was not done after {pace.limit_s / 60:.1f} minutes; {stopped}"
    return FtaasError(what, where, state.said, f"raise {order.where('provider', 'timeout_minutes')}")


def _abandoned(remote: Remote, job: str | None) -> str:
    """Stop the job of an interrupted launcher, also one whose name did not come back in time."""
    try:
        job = job or remote.find()
    except FtaasError as error:
        return f"whether a job was made is not known ({error.problems[0]})"
    return _stopping(remote, job) if job else "no job was made"


def _stopping(remote: Remote, job: str) -> str:
    """Stop a job; what became of that, in words. A job that costs money is never left alone silently."""
    try:
        remote.stop(job)
    except FtaasError as error:
        return f"it could NOT be stopped and may still cost money ({error.problems[0]})"
    return "it is being stopped"
