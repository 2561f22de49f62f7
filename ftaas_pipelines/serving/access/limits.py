"""How much a caller may ask: requests and tokens per minute and day, and at once.

Sliding windows of the `limits` library, in memory, or in Redis, where an environment's gateways share them.
Requests per minute are counted one by one; what may be many (tokens, days) is weighed: the window before
counts by as much of it as the last minute or day still covers.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.errors import StorageError

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.serving.access.caller import Caller
from ftaas_pipelines.serving.openai_shapes import RequestRefused
from ftaas_pipelines.settings import Settings

_log = logging.getLogger(__name__)
_REDIS_WITHIN_S = 1.0  # it answers in well below a millisecond, or it is away
_BORDER_S = 0.005  # clocks in floats, and in milliseconds in Redis
_NEAR_THE_END_S = 2.0  # nothing is given back to a window that may be over when Redis hears of it


@dataclass(frozen=True)
class _Limit:
    """One limit of a caller, and what a request takes of it."""

    item: RateLimitItem
    kind: Literal["requests", "tokens"]
    cost: int
    key: str

    @property
    def one_by_one(self) -> bool:
        return self.kind == "requests" and isinstance(self.item, RateLimitItemPerMinute)

    @property
    def what(self) -> str:
        return f"{self.kind} per {self.item.GRANULARITY.name}"


@dataclass(frozen=True)
class _Room:
    """What is left of a limit. Seconds.

    Attributes:
        wait_s: until there is room for the request that was asked about.
        window_s: until the window that is being counted ends; what is weighed then counts as the one before.
        reset_s: until nothing counts any more, if nothing is asked meanwhile.
    """

    left: int
    wait_s: float
    window_s: float
    reset_s: float


@dataclass
class Admission:
    """Leave for one request.

    Attributes:
        tokens: how many are counted for it.
        headers: what is left, as OpenAI's API tells it.
    """

    limits: "Limits"
    caller: Caller
    tokens: int
    headers: dict[str, str]
    # Tokens that are weighed, and until when (monotonic clock) they can be given back.
    held: list[tuple[_Limit, float]] = field(default_factory=list[tuple[_Limit, float]])
    _open: bool = True

    async def settle(self, tokens: int) -> None:
        """Count what was used instead of what was held, and release.

        What was held too much is given back while its window lasts; behind that it passes with the window.
        What was used beyond it is taken, be there room or not: the next request waits for it.

        Args:
            tokens: 0 where it is not known, as when the caller left: what is held stays counted.
        """
        try:
            if tokens and tokens != self.tokens:
                more, self.tokens = tokens - self.tokens, tokens
                await self.limits.correct(self.held, more)
        finally:
            self.release()

    def release(self) -> None:
        """Give the place among those at once back; harmless a second time."""
        if self._open:
            self._open = False
            self.limits.left(self.caller)


class Limits:
    """Counts, and refuses what is too much."""

    def __init__(self, storage: MemoryStorage | RedisStorage):
        self._storage = storage
        self._at_once: Counter[str] = Counter()

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """In the Redis of the settings, or in memory. Call it where an event loop runs.

        Raises:
            InputInvalid: the setting is no URL of a Redis.
        """
        url = settings.limits_url
        if not url:
            return cls(MemoryStorage())
        if not url.startswith(("redis://", "rediss://")):
            raise InputInvalid("is no Redis", "FTAAS_LIMITS_URL", do="write redis://HOST:PORT, or unset it")
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as Broken

        options: dict[str, Any] = {
            "socket_timeout": _REDIS_WITHIN_S,
            "socket_connect_timeout": _REDIS_WITHIN_S,
            "retry": Retry(NoBackoff(), 1, (Broken,)),  # a connection that Redis closed is opened anew
        }
        return cls(RedisStorage(f"async+{url}", wrap_exceptions=True, implementation="redispy", **options))

    async def close(self) -> None:
        """Let Redis go."""
        if isinstance(self._storage, RedisStorage):
            bridge: Any = self._storage.bridge
            await bridge.get_connection().aclose()

    async def admit(self, caller: Caller, tokens: int) -> Admission:
        """Leave for a request that will take about so many tokens.

        Raises:
            RequestRefused: 429, with the seconds to wait; 503, the limits cannot be counted.
        """
        most = caller.allowance.concurrent
        if most is not None and self._at_once[caller.id] >= most:
            raise _too_many(f"{most} requests at once", 0)
        self._at_once[caller.id] += 1  # before anything is awaited: others ask meanwhile
        try:
            return await self._take(caller, tokens)
        except (StorageError, OSError) as error:
            self.left(caller)
            said = f"The limits cannot be counted ({type(error.__cause__ or error).__name__})"
            raise RequestRefused(503, said, "limits_unavailable", None, {"Retry-After": "5"}) from error
        except BaseException:
            self.left(caller)
            raise

    def left(self, caller: Caller) -> None:
        """One request fewer of this caller is being answered."""
        self._at_once[caller.id] -= 1
        if self._at_once[caller.id] <= 0:
            del self._at_once[caller.id]

    async def _take(self, caller: Caller, tokens: int) -> Admission:
        """Look at every limit before any is taken from: a refused request costs nothing."""
        admission = Admission(self, caller, tokens, {})
        limits = list(_limits(caller, tokens))
        rooms = [await self._room(limit) for limit in limits]
        short = [each for each in zip(limits, rooms, strict=True) if each[0].cost > each[1].left]
        if short:
            raise _refused(*max(short, key=lambda each: each[1].wait_s))
        for limit, room in zip(limits, rooms, strict=True):
            if not await self._hit(limit):  # another gateway was first
                await self.correct(admission.held, -tokens)
                raise _refused(limit, await self._room(limit))
            for name, value in _headers(limit, room, room.left - limit.cost).items():
                admission.headers.setdefault(name, value)
            if limit.kind == "tokens":
                admission.held.append((limit, time.monotonic() + room.window_s - _NEAR_THE_END_S))
        return admission

    async def correct(self, held: list[tuple[_Limit, float]], more: int) -> None:
        """Count so many tokens more, or fewer, for what was admitted. Never refuses."""
        try:
            for limit, until in held:
                if more < 0 and time.monotonic() >= until:
                    continue  # in the next window it would be a credit
                await self._room(limit)  # Redis turns to the next window when it is looked at
                await self._storage.incr(self._counter(limit), 2 * limit.item.get_expiry(), more)
        except (StorageError, OSError) as error:  # the answer was given: it is too late to refuse
            _log.warning("%d tokens of a caller could not be counted: %s", more, type(error).__name__)

    async def _hit(self, limit: _Limit) -> bool:
        span, most = limit.item.get_expiry(), limit.item.amount
        if limit.one_by_one:
            return await self._storage.acquire_entry(limit.key, most, span, limit.cost)
        return await self._storage.acquire_sliding_window_entry(limit.key, most, span, limit.cost)

    async def _room(self, limit: _Limit) -> _Room:
        span, most = limit.item.get_expiry(), limit.item.amount
        if limit.cost > most:
            return _Room(0, math.inf, span, span)
        if limit.one_by_one:
            oldest, count = await self._storage.get_moving_window(limit.key, most, span)
            wait = oldest + span - time.time() if count >= most else 0.0
            return _Room(max(0, most - count), wait, span, span)
        before, before_s, now, now_s = await self._storage.get_sliding_window(limit.key, span)
        window_s = now_s - span if now_s > 0 else span
        room = max(0, most - math.floor(before * before_s / span) - now)
        wait = _wait(most - limit.cost + 1, span, (before, before_s), (now, window_s))
        return _Room(room, wait, window_s, now_s or 2 * span)

    def _counter(self, limit: _Limit) -> str:
        """Where the storage counts the window of now; tests hold this against a real Redis."""
        if isinstance(self._storage, RedisStorage):
            return f"{{{limit.key}}}"
        return self._storage.sliding_window_keys(limit.key, limit.item.get_expiry(), time.time())[1]


def _wait(below: int, span: float, before: tuple[int, float], now: tuple[int, float]) -> float:
    """Seconds until the weighed count falls below a number.

    Args:
        before: what the window before counted, and the seconds for which it still counts.
        now: what this window counts, and the seconds until it ends.
    """
    counted, fades_s = before
    current, window_s = now
    if current < below:
        room = (below - current) * span / counted if counted else math.inf
        return max(0.0, fades_s - room)
    return window_s + max(0.0, span - below * span / current)


def _limits(caller: Caller, tokens: int) -> Iterator[_Limit]:
    allowed = caller.allowance
    rows: tuple[tuple[Any, int | None, Literal["requests", "tokens"], int], ...] = (
        (RateLimitItemPerMinute, allowed.requests_per_minute, "requests", 1),
        (RateLimitItemPerDay, allowed.requests_per_day, "requests", 1),
        (RateLimitItemPerMinute, allowed.tokens_per_minute, "tokens", tokens),
        (RateLimitItemPerDay, allowed.tokens_per_day, "tokens", tokens),
    )
    for per, amount, kind, cost in rows:
        if amount is not None:
            item = per(amount, namespace=f"ftaas/{kind}")
            yield _Limit(item, kind, cost, item.key_for(caller.id))


def _headers(limit: _Limit, room: _Room, left: int) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{limit.kind}": str(limit.item.amount),
        f"x-ratelimit-remaining-{limit.kind}": str(max(0, left)),
        f"x-ratelimit-reset-{limit.kind}": f"{math.ceil(room.reset_s)}s",
    }


def _refused(limit: _Limit, room: _Room) -> RequestRefused:
    if limit.cost > limit.item.amount:
        said = f"This needs about {limit.cost} tokens, and this key may have {limit.item.amount} {limit.what}"
        # Waiting does not help: OpenAI's clients would try again.
        return RequestRefused(429, said, "rate_limit_exceeded", None, {"x-should-retry": "false"})
    refusal = _too_many(f"{limit.item.amount} {limit.what}", room.wait_s)
    refusal.headers |= _headers(limit, room, room.left)
    return refusal


def _too_many(what: str, wait_s: float) -> RequestRefused:
    seconds = math.floor(max(0.0, wait_s) + _BORDER_S) + 1  # behind the border, not on it
    said = f"This key may have {what}; try again in {seconds} s"
    return RequestRefused(429, said, "rate_limit_exceeded", None, {"Retry-After": str(seconds)})
