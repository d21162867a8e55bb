"""What operators see of an aggregator of several processes: one answer for all of them."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from prometheus_client import ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family

from psum.aggregator.observe.metrics import PROCESS_RESTARTS, READY
from psum.aggregator.observe.report import report
from psum.aggregator.processes.child import Child
from psum.aggregator.processes.merged_metrics import MergedMetrics
from psum.aggregator.processes.merged_status import merged_rates, merged_status
from psum.aggregator.processes.orders import FAMILIES, STATUS, UNREADY
from psum.aggregator.settings import Settings
from psum.runtime.prometheus import Families
from psum.v1 import aggregator_pb2 as pb

#: How long a process may take to answer. A probe of Kubernetes waits for 2 s or 5 s.
_PATIENCE_SECONDS: Final = 1.5

#: The number under which the supervisor's own process is counted.
_SUPERVISOR: Final = -1

_PROCESS: Final = ProcessCollector(registry=None)


class WholeView:
    """The View of all processes.

    Args:
        settings: The aggregator's settings.
        children: Returns the processes by number, None for one that is not running.
        restarts: Returns how often a process was started again.
        draining: Returns whether the aggregator is about to end.
    """

    def __init__(
        self,
        settings: Settings,
        children: Callable[[], Sequence[Child | None]],
        *,
        restarts: Callable[[], int],
        draining: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._children = children
        self._restarts = restarts
        self._draining = draining
        self._metrics = MergedMetrics()

    def end(self, number: int) -> None:
        """Notes that a process has ended."""
        self._metrics.end(number)

    async def hanging(self) -> str | None:
        """Which processes do not answer, None if all do that serve. Those that start do not count."""
        silent = [
            f"process {number} does not answer within {_PATIENCE_SECONDS:g} s"
            for number, answer in enumerate(await self._ask(UNREADY))
            if isinstance(answer, TimeoutError)
        ]
        return ", ".join(silent) or None

    async def unready(self) -> str | None:
        """Why no worker can connect to all processes, None if workers can."""
        if self._draining():
            return "draining"
        for number, answer in enumerate(await self._ask(UNREADY)):
            if isinstance(answer, TimeoutError):
                return f"process {number} does not answer"
            if isinstance(answer, ConnectionError):
                return f"process {number} is starting"
            if answer is not None:
                return f"process {number}: {answer}"
        return None

    async def families(self) -> Sequence[Family]:
        """The metrics of all processes together, with what this process itself takes."""
        for number, answer in enumerate(await self._ask(FAMILIES)):
            if not isinstance(answer, Exception):
                self._metrics.update(number, answer)
        restarts = Families((PROCESS_RESTARTS,))
        restarts.add(PROCESS_RESTARTS, self._restarts())
        self._metrics.update(_SUPERVISOR, [*_PROCESS.collect()])
        ready = GaugeMetricFamily(READY.name, READY.meaning, int(await self.unready() is None))
        own = {family.name: family for family in (*restarts, ready)}
        return [own.pop(family.name, family) for family in self._metrics.merged()] + list(own.values())

    async def report(self) -> dict[str, Any]:
        """The data of the status page."""
        answers = [answer for answer in await self._ask(STATUS) if not isinstance(answer, Exception)]
        statuses = [status for status, _ in answers] or [pb.GetStatusResponse()]
        rates = merged_rates(rates for _, rates in answers)
        return await asyncio.to_thread(lambda: report(merged_status(statuses), self._settings, rates))

    async def _ask(self, question: str) -> list[Any]:
        """The answer of each process to a question. A TimeoutError if it is silent, a ConnectionError without it."""

        async def ask(child: Child | None) -> Any:
            try:
                if child is None:
                    return ConnectionError("it does not run")
                return await child.ask(question, _PATIENCE_SECONDS)
            except (TimeoutError, ConnectionError) as error:
                return error

        return await asyncio.gather(*map(ask, self._children()))
