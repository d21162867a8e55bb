"""The inline plane: every payload travels in its gRPC message. It works everywhere, and others fall back to it."""

from collections.abc import Iterator

from psum.planes.data_connection import DataConnection
from psum.planes.plane import AggregatorPlane, Host, Location, Offer, WorkerPlane, WorkerTerms
from psum.v1 import aggregator_pb2 as pb
from psum.wire import BATCH_BYTES, ShardRound
from psum.wire.errors import ProtocolError


class InlineOffer(Offer):
    """Offers what every aggregator can do."""

    kind = pb.PLANE_INLINE

    def describe(self, hello: pb.Hello) -> None:
        """There is nothing to know."""

    def accepted(self, welcome: pb.Welcome) -> WorkerPlane:
        return InlineWorker()

    def close(self) -> None:
        """It holds nothing."""


class InlineWorker(WorkerPlane):
    """The worker's end."""

    kind = pb.PLANE_INLINE
    batch_bytes = BATCH_BYTES
    staged_divisor = 1
    credit_bytes: int | None = None
    payloads_follow = False
    shares_sums = False

    def put(
        self, value: memoryview, staged: int | None, payloads: list[memoryview], following: list[memoryview]
    ) -> Location:
        payloads.append(value)
        return Location(len(value))

    def free(self, offset: int, size: int) -> None:
        """No shared memory is ever held."""

    def get(self, row: ShardRound, following: Iterator[memoryview]) -> memoryview:
        raise ProtocolError(f"a sum of {row.outside_size} bytes outside of its message, on the inline plane")

    def close(self) -> None:
        """It holds nothing."""


class InlineAggregator(AggregatorPlane):
    """The aggregator's end."""

    kind = pb.PLANE_INLINE
    descriptors = 0
    uses_data_connection = False

    def get(self, row: ShardRound) -> memoryview | None:
        return None

    async def receive(self, row: ShardRound, connection: DataConnection | None) -> memoryview:
        raise ProtocolError(f"a contribution of {row.outside_size} bytes outside of its message, on the inline plane")

    def locate(self, size: int, offset: int | None) -> Location:
        return Location(size)

    def connected(self, connection: DataConnection) -> None:
        """Only messages go there."""

    def close(self) -> None:
        """It holds nothing."""


def offer(address: str, terms: WorkerTerms) -> Offer | None:
    """Offers the plane to an aggregator."""
    return InlineOffer()


def needs(hello: pb.Hello, host: Host) -> int:
    """How many file descriptors the aggregator needs to accept a worker, besides that of its stream."""
    return 0


def accept(hello: pb.Hello, welcome: pb.Welcome, host: Host) -> AggregatorPlane | None:
    """Accepts a worker."""
    return InlineAggregator()
