"""gRPC's standard health service: whether this aggregator accepts workers."""

from collections.abc import Callable
from typing import Any, Final

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import OVERALL_HEALTH, aio

from psum.v1 import aggregator_pb2 as pb

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING

#: The names whose state can be asked for: the aggregator as a whole, and its one service.
_NAMES: Final = (OVERALL_HEALTH, pb.DESCRIPTOR.services_by_name["AggregatorService"].full_name)


class _Servicer(aio.HealthServicer):
    """The health service, which reports its callers."""

    def __init__(self, called: Callable[[str], None]) -> None:
        super().__init__()
        self._called = called

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:
        self._called(context.peer())
        return await super().Check(request, context)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        self._called(context.peer())
        await super().Watch(request, context)


class Health:
    """The health service of one gRPC server.

    Args:
        called: Called with gRPC's name of the peer for each call.
    """

    def __init__(self, called: Callable[[str], None]) -> None:
        self._servicer = _Servicer(called)
        self._ready = False
        self._held = False

    async def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to a server that has not been started."""
        # A new servicer reports SERVING by default.
        self._ready = False
        await self._show()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def ready(self) -> None:
        """Reports that workers may connect."""
        self._ready = True
        await self._show()

    async def hold(self, held: bool) -> None:
        """Reports that workers should not connect yet, because another process of this aggregator is missing."""
        self._held = held
        await self._show()

    async def drain(self) -> None:
        """Reports that no worker should connect any more, to watchers too."""
        await self._servicer.enter_graceful_shutdown()

    async def _show(self) -> None:
        for name in _NAMES:
            await self._servicer.set(name, _SERVING if self._ready and not self._held else _NOT_SERVING)
