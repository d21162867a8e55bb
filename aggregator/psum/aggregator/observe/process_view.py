"""What operators see of one process."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from psum.aggregator.observe.loop_monitor import LoopMonitor
from psum.aggregator.observe.report import report
from psum.aggregator.observe.throughput import Throughput
from psum.aggregator.service.service import Service
from psum.v1 import aggregator_pb2 as pb

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family


class ProcessView:
    """The View of an aggregator that is one process.

    Args:
        service: The service to report on.
        loop_monitor: Measures the lag of the event loop.
        throughput: Samples the throughput.
    """

    def __init__(self, service: Service, loop_monitor: LoopMonitor, throughput: Throughput) -> None:
        self._service = service
        self._loop_monitor = loop_monitor
        self._throughput = throughput
        self._loop = asyncio.get_running_loop()

    async def hanging(self) -> str | None:
        """None: an answer shows that the event loop runs."""
        return None

    async def unready(self) -> str | None:
        """Why no worker can connect, None if workers can."""
        if self._service.ready:
            return None
        if self._service.full:
            return self._service.descriptors.lack("no further worker can connect")
        return "draining" if self._service.draining else "starting"

    async def families(self) -> "Sequence[Family]":
        """All metrics with their present values."""
        # Imported only if it is needed: Prometheus' library may be missing.
        from psum.aggregator.observe.metrics import collect

        return list(collect(self._service, self._loop_monitor, self._loop.time()))

    def status(self) -> tuple[pb.GetStatusResponse, list[tuple[float, float]]]:
        """The status with all jobs, and the throughput of the last minutes as `report` takes it."""
        return self._service.status(), self._throughput.rates

    async def report(self) -> dict[str, Any]:
        """The data of the status page."""
        status, rates = self.status()
        return await asyncio.to_thread(report, status, self._service.settings, rates)
