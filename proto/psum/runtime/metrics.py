"""Metrics of both sides. They are plain objects: cheap to write, and read only when somebody asks."""

import dataclasses
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, Literal

#: Histogram bounds for the duration of rounds, from a small shard on one machine to a stalled job.
ROUND_BOUNDS_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """The declaration of a metric. The exposition and the documentation are made from it.

    Attributes:
        name: The name in Prometheus. A counter's name ends with _total.
        kind: The type of metric.
        meaning: One sentence for people, with a full stop.
        labels: The names of its labels.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()


class Histogram:
    """Count observed values by bounds. Only one thread may write.

    Args:
        bounds: Ascending. A value equal to a bound counts as below it.
    """

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0
        """The sum of all values."""

    def __repr__(self) -> str:
        return f"<Histogram count={self.count} sum={self.sum:g}>"

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self._counts)

    def observe(self, value: float, times: int = 1) -> None:
        """Add a value that was observed so many times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def observe_since(self, times: Iterable[float], now: float) -> None:
        """Add how long ago something was, for each of many times, most of which are equal."""
        for since, count in Counter(times).items():
            self.observe(now - since, count)

    def buckets(self) -> list[tuple[str, float]]:
        """Return the number of values up to each bound, with the bound as text, +Inf last."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets
