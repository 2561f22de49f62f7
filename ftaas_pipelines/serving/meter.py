"""What the gateway's `/metrics` shows. Unknown models share one label: callers cannot grow the table."""

from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

if TYPE_CHECKING:
    from ftaas_pipelines.serving.passage import Passage

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_SHORT = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.015, 0.03, 0.1, 0.5)


class Meter:
    """The gateway's metrics, one registry."""

    def __init__(self) -> None:
        disable_created_metrics()  # a time of birth beside every counter
        self.registry = CollectorRegistry()
        kept: dict[str, Any] = {"registry": self.registry}
        names = ("project", "release", "variant")
        self._requests = Counter(
            "ftaas_requests", "Requests by what became of them", (*names, "status", "code"), **kept
        )
        self._seconds = Histogram(
            "ftaas_request_seconds", "Time to the last byte", names, buckets=_SECONDS, **kept
        )
        self._around = Histogram(
            "ftaas_gateway_seconds", "Time spent around the engine", names, buckets=_SHORT, **kept
        )
        self._first = Histogram(
            "ftaas_first_token_seconds", "Time to the first token", names, buckets=_SECONDS, **kept
        )
        self._each = Histogram(
            "ftaas_token_seconds", "Time a token, behind the first", names, buckets=_SHORT, **kept
        )
        self._tokens = Counter("ftaas_tokens", "Tokens read and written", (*names, "kind"), **kept)
        self._cost = Counter("ftaas_cost_usd", "Cost of tokens at the project's price", names, **kept)
        self._guard = Counter(
            "ftaas_guard", "What the guard saw", ("project", "rule", "action", "where"), **kept
        )
        self.in_flight = Gauge("ftaas_in_flight", "Requests being answered", **kept)
        ProcessCollector(**kept)

    def ended(self, passage: "Passage") -> None:
        """Count a request that has been answered or refused."""
        names = (passage.project_label, passage.release[:12], passage.variant)
        self._requests.labels(*names, str(passage.status), passage.code).inc()
        for seen in passage.noticed:
            labels = (passage.project_label, seen.rule, seen.action, seen.where)
            self._guard.labels(*labels).inc(seen.count)
        if passage.status != 200:
            return
        self._seconds.labels(*names).observe(passage.total_s)
        self._around.labels(*names).observe(max(0.0, passage.total_s - passage.engine_s))
        self._first.labels(*names).observe(passage.first_token_s)
        if passage.completion_tokens > 1:
            behind = max(0.0, passage.engine_s - passage.first_token_s)
            self._each.labels(*names).observe(behind / (passage.completion_tokens - 1))
        self._tokens.labels(*names, "prompt").inc(passage.prompt_tokens)
        self._tokens.labels(*names, "completion").inc(passage.completion_tokens)
        self._cost.labels(*names).inc(passage.cost_usd)

    def page(self) -> str:
        return generate_latest(self.registry).decode()
