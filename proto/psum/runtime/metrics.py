"""What both sides count with: plain objects, cheap to write to, read only when somebody asks."""

import dataclasses
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, Literal

#: Bounds for how long rounds take: from a small shard on one machine to what people are called for.
ROUND_BOUNDS_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """What is known about one metric; the exposition and the documentation are made from it.

    Attributes:
        name: As Prometheus knows it; that of a counter ends with _total.
        kind: What it is.
        meaning: One sentence for people, with its end.
        labels: What it is divided by.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()


class Histogram:
    """How many of some observed values were below which bounds. Written to by one thread.

    Args:
        bounds: Ascending; a value that equals a bound counts as below it.
    """

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0
        """All values together."""

    def __repr__(self) -> str:
        return f"<Histogram count={self.count} sum={self.sum:g}>"

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self._counts)

    def observe(self, value: float, times: int = 1) -> None:
        """Adds a value, which was observed so many times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """The values up to each bound, by the bound as text, +Inf last."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets
