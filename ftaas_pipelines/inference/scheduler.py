"""Many callers, one model: requests are answered together, and join and leave between steps.

One thread owns the model. Between two steps it takes in what has come: at once when nothing is on its way,
else when enough is waiting to be worth a pass of its own over the prompts, or when somebody has waited
for `patience_s` (the batching bound). Rows that cannot be mixed (another network, another kind of adapter, an
encoder-decoder) have batches of their own, which take turns.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ftaas_pipelines.inference.batch import GREEDY, Batch, Constraint, Generation, OnText, Row, Sampling
from ftaas_pipelines.inference.decoding import BATCH, Model, Prompt
from ftaas_pipelines.inference.tools import Tool

PATIENCE_S = 0.015
_WORTH = 4  # a quarter as many waiting as are on their way: worth a pass of their own


class Cancelled(Exception):
    """Nobody waits for this answer any more, or the scheduler was closed."""


@dataclass(eq=False)
class Ticket:
    """One request on its way.

    Attributes:
        result: the answer; fails with `Cancelled`, InputInvalid, or what broke the model.
        at: when it was handed in, `time.monotonic()`; so is `joined_at`, when the model began with it.
        beside: rows that were on their way when it joined, itself among them.
    """

    prompt: Prompt
    adapter: str | None
    max_new_tokens: int
    sampling: Sampling
    on_text: OnText | None
    constraint: Constraint | None
    tools: Sequence[Tool] = ()
    result: "Future[Generation]" = field(default_factory=lambda: Future[Generation]())
    at: float = field(default_factory=time.monotonic)
    joined_at: float = 0.0
    ended_at: float = 0.0
    beside: int = 0
    row: Row | None = None

    def cancel(self) -> None:
        """Stop generating at the next step; harmless when it is done."""
        self.result.cancel()

    @property
    def first_token_s(self) -> float:
        """From handing in to the first token."""
        return max(0.0, self.row.first_at - self.at) if self.row and self.row.first_at else 0.0

    @property
    def queue_s(self) -> float:
        return max(0.0, self.joined_at - self.at)

    @property
    def total_s(self) -> float:
        """From handing in to the whole answer."""
        return max(0.0, self.ended_at - self.at)


class Scheduler:
    """Answers requests of any thread.

    Args:
        most: rows of one batch.
        patience_s: longest that a request waits for company while others are being answered.
    """

    def __init__(self, model: Model, most: int = BATCH, patience_s: float = PATIENCE_S):
        self._model, self._most, self._patience = model, most, patience_s
        self._waiting: deque[Ticket] = deque()
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._running: dict[str, list[tuple[Batch, list[Ticket]]]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="scheduler")
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return sum(len(tickets) for lane in self._running.copy().values() for _, tickets in lane)

    def in_use(self) -> set[str]:
        """Adapters that somebody waits for or is answered with."""
        with self._changed:
            waiting = [t.adapter for t in self._waiting]
        lanes = list(self._running.values())
        return {
            a
            for a in [*waiting, *(t.adapter for lane in lanes for _, ts in list(lane) for t in list(ts))]
            if a
        }

    def submit(
        self,
        prompt: Prompt,
        adapter: str | None,
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        on_text: OnText | None = None,
        constraint: Constraint | None = None,
        tools: Sequence[Tool] = (),
    ) -> Ticket:
        """Hand in a request. `on_text` is called in the scheduler's thread, and must not block."""
        ticket = Ticket(prompt, adapter, max_new_tokens, sampling, on_text, constraint, tools)
        with self._changed:
            if self._closed:
                ticket.result.set_exception(Cancelled())
                return ticket
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def between(self, work: Callable[[], Any]) -> "Future[Any]":
        """Do something to the model between two steps (load or forget an adapter)."""
        future: Future[Any] = Future()
        with self._changed:
            self._jobs.append((work, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Answer no more; what is on its way fails with `Cancelled`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._jobs or self._running or self._closed):
                    self._changed.wait()
                if self._closed:
                    break
                jobs, self._jobs = self._jobs, deque()
            for work, future in jobs:
                _settle(future, work)
            self._take_in()
            for key in list(self._running):
                self._step(key)
        for ticket in [*self._waiting, *(t for lane in self._running.values() for _, ts in lane for t in ts)]:
            _fail(ticket, Cancelled())

    def _take_in(self) -> None:
        """Let waiting requests join, all that there is room for."""
        running = self.running
        if not self._waiting:
            return
        due = time.monotonic() - self._waiting[0].at >= self._patience
        if running and not due and len(self._waiting) * _WORTH < running:
            return
        lanes: dict[str, list[Ticket]] = {}
        left: list[Ticket] = []
        for _ in range(len(self._waiting)):
            ticket = self._waiting.popleft()
            if ticket.result.done():  # cancelled meanwhile
                continue
            try:
                lane = self._model.lane(ticket.adapter)
                if running < self._most:
                    ticket.row = self._row(ticket)
            except Exception as error:
                _fail(ticket, error)
                continue
            if ticket.row is None:
                left.append(ticket)
                continue
            running += 1
            lanes.setdefault(lane, []).append(ticket)
        self._waiting.extendleft(reversed(left))
        for lane, tickets in lanes.items():
            self._join(lane, tickets)

    def _row(self, ticket: Ticket) -> Row:
        return self._model.row(
            ticket.prompt,
            ticket.adapter,
            ticket.max_new_tokens,
            ticket.sampling,
            ticket.on_text,
            ticket.constraint,
            ticket.tools,
        )

    def _join(self, lane: str, tickets: list[Ticket]) -> None:
        first = tickets[0].adapter
        if self._model.names_labels(first):
            self._name(tickets)
            return
        batches = self._running.setdefault(lane, [])
        found = next((b for b in batches if b[0].joinable), None)
        if found is None:
            found = (self._model.batch(first), [])
            batches.append(found)
        batch, members = found
        now = time.monotonic()
        beside = len(members) + len(tickets)
        for ticket in tickets:
            ticket.joined_at, ticket.beside = now, beside
        try:
            batch.join([t.row for t in tickets if t.row])
        except Exception as error:  # those that were there before go on
            for ticket in tickets:
                _fail(ticket, error)
            tickets = []
        members += tickets
        self._collect(lane)

    def _name(self, tickets: list[Ticket]) -> None:
        """A label is one pass over the prompts: nothing to step through."""
        now = time.monotonic()
        try:
            said = self._model.name([t.prompt for t in tickets], tickets[0].adapter)
        except Exception as error:
            for ticket in tickets:
                _fail(ticket, error)
            return
        for ticket, generation in zip(tickets, said, strict=True):
            ticket.joined_at, ticket.beside = now, len(tickets)
            if ticket.row:
                ticket.row.first_at = time.monotonic()
            try:
                if ticket.on_text and generation.text:
                    ticket.on_text(generation.text, len(generation.token_ids))
            except Exception as error:  # whoever listened: the others are answered
                _fail(ticket, error)
                continue
            _finish(ticket, generation)

    def _step(self, lane: str) -> None:
        for batch, members in self._running[lane]:
            for ticket in members:
                if ticket.row and ticket.result.cancelled():
                    ticket.row.cancelled = True
            try:
                if batch.rows:
                    batch.step()
            except Exception as error:
                batch.rows = []
                for ticket in members:
                    _fail(ticket, error)
        self._collect(lane)

    def _collect(self, lane: str) -> None:
        """Answer those that are done; forget batches without rows."""
        left: list[tuple[Batch, list[Ticket]]] = []
        for batch, members in self._running[lane]:
            going = {id(row) for row in batch.rows}
            for ticket in members:
                if ticket.row and id(ticket.row) not in going and not ticket.result.done():
                    _finish(ticket, ticket.row.generation())
            members[:] = [t for t in members if id(t.row) in going]
            if members:
                left.append((batch, members))
        if left:
            self._running[lane] = left
        else:
            self._running.pop(lane, None)


def _settle(future: "Future[Any]", work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)


def _finish(ticket: Ticket, generation: Generation) -> None:
    ticket.ended_at = time.monotonic()
    if ticket.result.set_running_or_notify_cancel():
        ticket.result.set_result(generation)


def _fail(ticket: Ticket, error: Exception) -> None:
    if not ticket.result.done() and ticket.result.set_running_or_notify_cancel():
        ticket.result.set_exception(error)
