"""How the endpoint stands, for `/metrics`: looked up when Prometheus asks, never on a request's way."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ftaas_pipelines.serving import logs
from ftaas_pipelines.serving.inference_log import InferenceLog
from ftaas_pipelines.serving.supervision import Supervisor
from ftaas_pipelines.serving.traces import Traces


class Standing(Collector):
    """What is served by what, and whether anything is lost."""

    def __init__(self, supervisor: Supervisor, log: InferenceLog, traces: Traces | None):
        self._supervisor, self._log, self._traces = supervisor, log, traces

    def describe(self) -> list[Metric]:
        """Nothing beforehand: registering asks no supervisor."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield self._serving()
        yield from self._engines()
        waiting, failing, dropped = self._log.waiting, bool(self._log.failing), self._log.dropped
        yield _gauge("ftaas_inference_log_waiting", "Rows of the inference log not written yet", waiting)
        yield _gauge("ftaas_inference_log_failing", "1 while its rows cannot be written", failing)
        yield _gauge("ftaas_unlogged", "Answers that the inference log had no room for", dropped)
        lines, untraced = logs.dropped(), self._traces.lost if self._traces else 0
        yield _counter("ftaas_log_lines_dropped", "Lines of supervisor.log that were lost", lines)
        yield _counter("ftaas_traces_lost", "Requests whose spans were lost before they were sent", untraced)

    def _serving(self) -> Metric:
        labels = ("project", "release", "variant", "state")
        found = GaugeMetricFamily("ftaas_serving", "1 for each release that should answer", labels=labels)
        for project, stands in self._supervisor.status().items():
            found.add_metric((project, stands["release"][:12], "", stands["state"]), 1)
            if trial := stands.get("trial"):
                found.add_metric((project, trial["release"][:12], trial["kind"], trial["state"]), 1)
        return found

    def _engines(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("ftaas_engine_up", "1 while an engine's process answers", labels=("group",))
        failures = GaugeMetricFamily(
            "ftaas_engine_failures", "Times in a row that it crashed or did not start", labels=("group",)
        )
        rests = GaugeMetricFamily(
            "ftaas_breaker_rests_seconds", "Until an engine that fails is asked again", labels=("group",)
        )
        for key, group in sorted(self._supervisor.groups.items()):
            engine = group.engine if group.engine and group.engine.ended is None else None
            up.add_metric((key,), engine is not None)
            failures.add_metric((key,), group.crashes)
            rests.add_metric((key,), engine.breaker.rests_s if engine else 0.0)
        yield from (up, failures, rests)


def _gauge(name: str, said: str, value: float) -> Metric:
    return GaugeMetricFamily(name, said, value=value)


def _counter(name: str, said: str, value: float) -> Metric:
    return CounterMetricFamily(name, said, value=value)
