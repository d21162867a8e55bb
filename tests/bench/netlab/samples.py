"""What the links carried over time."""

import bisect
from collections.abc import Iterable, Sequence
from typing import Self


class Samples:
    """Samples of the links' byte counters.

    Args:
        times: The monotonic times of the samples in seconds, in ascending order, at least one.
        counts: For each sample and each host, the bytes that the host has sent and received so far.
        drops: For each sample, the number of packets that full queues have dropped so far.
    """

    def __init__(
        self, times: Sequence[float], counts: Sequence[Sequence[tuple[int, int]]], drops: Sequence[int]
    ) -> None:
        self._times = times
        self._counts = counts
        self._drops = drops

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Self:
        """Parses the output of sampler.py. Ignores an incomplete last line."""
        times, counts, drops = [], [], []
        for line in lines:
            if line.endswith("\n"):
                now, dropped, *numbers = line.split()
                times.append(float(now))
                drops.append(int(dropped))
                counts.append([(int(a), int(b)) for a, b in zip(numbers[::2], numbers[1::2], strict=True)])
        return cls(times, counts, drops)

    def carried(self, begin: float, end: float) -> list[tuple[float, float]]:
        """Bytes that each host sent and received between two times."""
        before, after = self._at(begin), self._at(end)
        return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(before, after, strict=True)]

    def carried_around(self, begin: float, end: float) -> list[tuple[int, int]]:
        """Bytes that each host sent and received, from the last sample before `begin` to the first after `end`.

        This is exact if the links are idle around these times. Interpolation would miss some bytes.
        """
        before, after = self._counts[self._last_before(begin)], self._counts[self._first_after(end)]
        return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(before, after, strict=True)]

    def dropped_around(self, begin: float, end: float) -> int:
        """Packets that full queues dropped between the same samples."""
        return self._drops[self._first_after(end)] - self._drops[self._last_before(begin)]

    def fullness(self, begin: float, end: float, bytes_per_second: float) -> list[tuple[float, float]]:
        """The part of its rate that each link used between two times, out of the host and into it."""
        most = (end - begin) * bytes_per_second
        return [(out / most, into / most) for out, into in self.carried(begin, end)]

    def _last_before(self, moment: float) -> int:
        return max(bisect.bisect_right(self._times, moment) - 1, 0)

    def _first_after(self, moment: float) -> int:
        return min(bisect.bisect_left(self._times, moment), len(self._times) - 1)

    def _at(self, moment: float) -> list[tuple[float, float]]:
        """The counts at a time, interpolated between the samples around it."""
        after = bisect.bisect(self._times, moment)
        if after == 0 or after == len(self._times):
            return [(float(out), float(into)) for out, into in self._counts[max(after - 1, 0)]]
        first, second = self._times[after - 1], self._times[after]
        part = (moment - first) / (second - first)
        return [
            (a[0] + part * (b[0] - a[0]), a[1] + part * (b[1] - a[1]))
            for a, b in zip(self._counts[after - 1], self._counts[after], strict=True)
        ]
