"""The metrics of several processes as those of one aggregator."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample

from psum.aggregator.observe import metrics as declared

_Series = tuple[str, tuple[tuple[str, str], ...]]
"""The name of a sample and its labels."""

#: How gauges of several processes become one, if they are not added. Every worker is connected to every process, and
#: every job is in progress on every process.
_GAUGES: Final[Mapping[str, Callable[[Iterable[float]], float]]] = {
    declared.BUILD.name: max,
    declared.READY.name: min,
    declared.WORKER_CAPACITY.name: min,
    declared.JOBS.name: max,
    declared.MEMORY_BUDGET.name: max,
    declared.WORKERS.name: max,
    declared.WORKERS_CONNECTED.name: min,
    declared.OLDEST_WAIT.name: max,
    declared.OLDEST_MISSING.name: max,
    declared.MEMBERS.name: min,
    declared.LEAST_MEMBERS.name: max,
    declared.CANDIDATES.name: max,
    declared.SINCE_CHANGE.name: min,
    "process_start_time_seconds": max,
}


#: Counters of what every process sees, which are not added.
_SEEN_BY_ALL: Final = {
    metric.name.removesuffix("_total") for metric in (declared.LOSSES, declared.JOINS, declared.DEPARTURES)
}


class MergedMetrics:
    """Adds up metrics so that counters never go back, although a process that was started again begins at 0."""

    def __init__(self) -> None:
        self._last: dict[int, Sequence[Family]] = {}
        """What each process said last."""
        self._ended: dict[_Series, float] = {}
        """The last values of counters of processes that have ended."""

    def update(self, process: int, families: Sequence[Family]) -> None:
        """Takes the present metrics of a process."""
        self._last[process] = families

    def end(self, process: int) -> None:
        """Notes that a process has ended. Another one may get its number."""
        for family in self._last.pop(process, ()):
            if family.type != "gauge":
                for sample in family.samples:
                    series = _series(sample)
                    before = self._ended.get(series, 0.0)
                    add = max if family.name in _SEEN_BY_ALL else operator.add
                    self._ended[series] = add(before, sample.value)

    def merged(self) -> list[Family]:
        """The metrics of all processes together, from what each said last."""
        found: dict[str, Family] = {}
        values: dict[_Series, list[float]] = {}
        for families in self._last.values():
            for family in families:
                merged = found.setdefault(family.name, Family(family.name, family.documentation, family.type))
                for sample in family.samples:
                    if (series := _series(sample)) not in values:
                        values[series] = []
                        merged.samples.append(sample)
                    values[series].append(sample.value)
        # A job that has ended on all processes is forgotten there after a while, and so here.
        self._ended = {series: value for series, value in self._ended.items() if series in values}
        for family in found.values():
            if family.type == "gauge":
                add = _GAUGES.get(family.name, sum)
            else:
                # What processes have counted that have ended counts too.
                add = max if family.name in _SEEN_BY_ALL else sum
                for sample in family.samples:
                    if (before := self._ended.get(series := _series(sample))) is not None:
                        values[series].append(before)
            family.samples = [sample._replace(value=add(values[_series(sample)])) for sample in family.samples]
        return list(found.values())


def _series(sample: Sample) -> _Series:
    return sample.name, tuple(sorted(sample.labels.items()))
