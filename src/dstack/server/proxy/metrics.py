"""What this process has done for services, for `/metrics`: looked up when the page is asked for, never before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dstack.proxy.histogram import percentile
from dstack.proxy.stats import Counts, ServiceStats

LABELS = ("project", "run")
QUANTILES = (0.5, 0.9, 0.99)
WINDOW = 60
"""Seconds that the quantiles are of."""

COUNTERS: Mapping[str, tuple[str, Callable[[Counts], float]]] = {
    "dstack_service_requests": ("Requests that were answered, or failed.", lambda counts: counts.requests),
    "dstack_service_request_errors": (
        "Those with a status of 500 and more, or without a whole answer.",
        lambda counts: counts.errors,
    ),
    "dstack_service_request_seconds": ("How long they took together.", lambda counts: counts.seconds),
    "dstack_service_prompt_tokens": ("Tokens that answers reported.", lambda counts: counts.prompt_tokens),
    "dstack_service_completion_tokens": ("The same of completions.", lambda counts: counts.completion_tokens),
}
HISTOGRAMS: Mapping[str, tuple[str, Callable[[Counts], Mapping[int, int]]]] = {
    "dstack_service_latency_seconds": (
        "Until the end of an answer, in the last minute.",
        lambda counts: counts.latency,
    ),
    "dstack_service_first_byte_seconds": ("The same until its beginning.", lambda counts: counts.first_byte),
}


class ServiceMetrics(Collector):
    """`names`: project and run by the id of a service."""

    def __init__(self, stats: ServiceStats, names: Callable[[], Mapping[str, tuple[str, str]]]) -> None:
        self._stats = stats
        self._names = names

    def describe(self) -> Iterable[Metric]:
        """Names and texts; without it the client library would collect once to know them."""
        return [*self._counters().values(), self._in_flight(), *self._quantiles().values()]

    def collect(self) -> Iterable[Metric]:
        counters, in_flight, quantiles = self._counters(), self._in_flight(), self._quantiles()
        for id, labels in self._names().items():
            total, recent = self._stats.total(id), self._stats.windows(id)[WINDOW]
            for name, (_, value) in COUNTERS.items():
                counters[name].add_metric(labels, value(total))
            in_flight.add_metric(labels, self._stats.in_flight(id))
            for name, (_, buckets) in HISTOGRAMS.items():
                for quantile in QUANTILES:
                    seconds = percentile(buckets(recent), quantile)
                    if seconds is not None:
                        quantiles[name].add_metric((*labels, str(quantile)), seconds)
        return [*counters.values(), in_flight, *quantiles.values()]

    def _counters(self) -> dict[str, CounterMetricFamily]:
        return {name: CounterMetricFamily(name, text, labels=LABELS) for name, (text, _) in COUNTERS.items()}

    def _in_flight(self) -> GaugeMetricFamily:
        return GaugeMetricFamily("dstack_service_requests_in_flight", "Requests on their way.", labels=LABELS)

    def _quantiles(self) -> dict[str, GaugeMetricFamily]:
        labels = (*LABELS, "quantile")
        return {name: GaugeMetricFamily(name, text, labels=labels) for name, (text, _) in HISTOGRAMS.items()}
