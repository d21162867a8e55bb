"""Metrics in the form of Prometheus' client library.

The library may be missing, so import this module only when metrics are asked for. `Families` reads the plain objects of
psum.runtime.metrics at that time.
"""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from psum.runtime.metrics import Histogram, Metric

__all__ = ["Collector", "Families", "encode", "registry_of"]


class Families:
    """Collect the present values of metrics.

    Args:
        metrics: All metrics that may be added, in the order of the exposition.
    """

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._families: dict[Metric, Family] = {}
        for metric in metrics:
            kind = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
            self._families[metric] = kind[metric.kind](metric.name, metric.meaning, labels=metric.labels)

    def add(self, metric: Metric, value: float | Histogram, *labels: str) -> None:
        """Add the value of a metric with these labels."""
        family = self._families[metric]
        if isinstance(value, Histogram):
            assert isinstance(family, HistogramMetricFamily)
            family.add_metric(labels, value.buckets(), value.sum)
        else:
            assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
            family.add_metric(labels, value)

    def __iter__(self) -> Iterator[Family]:
        """Iterate over the metrics that have a value."""
        return (family for family in self._families.values() if family.samples)


class _Collector(Collector):
    def __init__(self, collect: Callable[[], Iterable[Family]]) -> None:
        self._collect = collect

    def describe(self) -> Iterable[Family]:
        # Prometheus calls this at registration, when there may be no values yet.
        return ()

    def collect(self) -> Iterable[Family]:
        return self._collect()


def registry_of(collect: Callable[[], Iterable[Family]]) -> CollectorRegistry:
    """Return a registry that calls a function for its metrics."""
    registry = CollectorRegistry()
    registry.register(_Collector(collect))
    return registry


def encode(families: Iterable[Family], accept: str) -> tuple[bytes, str]:
    """Return the exposition and its content type: OpenMetrics if the Accept header has it, else Prometheus' text."""
    encoder, content_type = choose_encoder(accept)
    collected = list(families)
    return encoder(registry_of(lambda: collected)), content_type
