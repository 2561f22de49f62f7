"""How much a caller may ask: requests and tokens per minute and day, and at once.

Sliding windows of the `limits` library, in memory, or in Redis, where an environment's gateways share them.
"""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.aio.strategies import MovingWindowRateLimiter, RateLimiter, SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from ftaas_pipelines.serving.access.caller import Caller
from ftaas_pipelines.serving.openai_shapes import RequestRefused
from ftaas_pipelines.settings import Settings


@dataclass
class Admission:
    """Leave for one request.

    Attributes:
        headers: what is left, as OpenAI's API tells it.
    """

    limits: "Limits"
    caller: Caller
    held: int
    headers: dict[str, str] = field(default_factory=dict[str, str])
    _open: bool = True

    async def settle(self, tokens: int) -> None:
        """Take what was used beyond what was held. What was held too much comes back with its window."""
        if tokens > self.held:
            with contextlib.suppress(RequestRefused):  # the answer is given; the next one waits
                await self.limits.take(self.caller, 0, tokens - self.held)
        self.held = max(self.held, tokens)

    def release(self) -> None:
        """Give the place among those at once back; harmless a second time."""
        if self._open:
            self._open = False
            self.limits.left(self.caller)


class Limits:
    """Counts, and refuses what is too much."""

    def __init__(self, storage: Storage):
        self._storage = storage
        self._requests: RateLimiter = MovingWindowRateLimiter(storage)
        self._tokens: RateLimiter = SlidingWindowCounterRateLimiter(storage)
        self._at_once: Counter[str] = Counter()

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """In the Redis of the settings, or in memory."""
        if not settings.limits_url:
            return cls(MemoryStorage())
        return cls(
            RedisStorage(f"async+{settings.limits_url}", wrap_exceptions=True, implementation="redispy")
        )

    async def admit(self, caller: Caller, tokens: int) -> Admission:
        """Leave for a request that will take about so many tokens.

        Raises:
            RequestRefused: 429, with the seconds to wait; 503, the limits cannot be counted.
        """
        allowed = caller.allowance
        if allowed.concurrent is not None and self._at_once[caller.id] >= allowed.concurrent:
            raise _too_many("requests at once", allowed.concurrent, 1.0)
        headers = await self.take(caller, 1, tokens)
        self._at_once[caller.id] += 1
        return Admission(self, caller, tokens, headers)

    def left(self, caller: Caller) -> None:
        self._at_once[caller.id] -= 1
        if not self._at_once[caller.id]:
            del self._at_once[caller.id]

    async def take(self, caller: Caller, requests: int, tokens: int) -> dict[str, str]:
        """Count, all or nothing as far as one gateway sees.

        Raises:
            RequestRefused: 429 or 503, as `admit`.
        """
        headers: dict[str, str] = {}
        asked = [(i, n, cost) for i, n, cost in _items(caller, requests, tokens) if cost]
        try:
            for item, name, cost in asked:
                limiter = self._limiter(name)
                if not await limiter.test(item, caller.id, cost=cost):
                    raise _too_many(name, item.amount, await self._wait(limiter, item, caller.id))
            for item, name, cost in asked:
                limiter = self._limiter(name)
                if not await limiter.hit(item, caller.id, cost=cost):  # another gateway was first
                    raise _too_many(name, item.amount, await self._wait(limiter, item, caller.id))
                left = await limiter.get_window_stats(item, caller.id)
                kind = "requests" if name.startswith("requests") else "tokens"
                headers.setdefault(f"x-ratelimit-limit-{kind}", str(item.amount))
                headers.setdefault(f"x-ratelimit-remaining-{kind}", str(max(0, left.remaining)))
        except (StorageError, OSError) as error:
            said = f"The limits cannot be counted ({type(error).__name__})"
            raise RequestRefused(503, said, "limits_unavailable", None, {"Retry-After": "5"}) from error
        return headers

    def _limiter(self, name: str) -> RateLimiter:
        return self._requests if name.startswith("requests") else self._tokens

    async def _wait(self, limiter: RateLimiter, item: RateLimitItem, id: str) -> float:
        stats = await limiter.get_window_stats(item, id)
        return max(1.0, stats.reset_time - time.time())


def _items(caller: Caller, requests: int, tokens: int) -> Iterator[tuple[RateLimitItem, str, int]]:
    """Each limit of a caller: what it is, its name, what this takes of it."""
    allowed = caller.allowance
    rows: tuple[tuple[Any, int | None, str, int], ...] = (
        (RateLimitItemPerMinute, allowed.requests_per_minute, "requests per minute", requests),
        (RateLimitItemPerDay, allowed.requests_per_day, "requests per day", requests),
        (RateLimitItemPerMinute, allowed.tokens_per_minute, "tokens per minute", tokens),
        (RateLimitItemPerDay, allowed.tokens_per_day, "tokens per day", tokens),
    )
    for kind, amount, name, cost in rows:
        if amount is not None:
            yield kind(amount, namespace=f"ftaas/{name}"), name, cost


def _too_many(what: str, amount: int, wait_s: float) -> RequestRefused:
    seconds = math.ceil(wait_s)
    said = f"This key may have {amount} {what}; try again in {seconds} s"
    return RequestRefused(429, said, "rate_limit_exceeded", None, {"Retry-After": str(seconds)})
