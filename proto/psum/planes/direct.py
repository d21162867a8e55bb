"""The direct plane: payloads follow their message on the data connection, straight from and into memory.

The worker opens the data connection after welcome. Until it talks there, payloads travel in messages on the stream.
"""

from collections.abc import Iterator

from psum.planes.data_connection import DataConnection
from psum.planes.plane import AggregatorPlane, Host, Location, Offer, WorkerPlane, WorkerTerms
from psum.v1 import aggregator_pb2 as pb
from psum.wire import OUTSIDE_BATCH_BYTES, ShardRound
from psum.wire.errors import ProtocolError


class DirectOffer(Offer):
    """Offers to open a data connection."""

    kind = pb.PLANE_DIRECT

    def describe(self, hello: pb.Hello) -> None:
        """The aggregator names its port; there is nothing else to know."""

    def accepted(self, welcome: pb.Welcome) -> WorkerPlane:
        return DirectWorker()

    def close(self) -> None:
        """It holds nothing."""


class DirectWorker(WorkerPlane):
    """The worker's end. Whoever owns the stream also owns the data connection, and sends what `put` leaves."""

    kind = pb.PLANE_DIRECT
    batch_bytes = OUTSIDE_BATCH_BYTES
    staged_divisor = 1
    credit_bytes: int | None = None
    payloads_follow = True
    shares_sums = False

    def put(
        self, value: memoryview, staged: int | None, payloads: list[memoryview], following: list[memoryview]
    ) -> Location:
        following.append(value)
        return Location(outside_size=len(value), follows=True)

    def free(self, offset: int, size: int) -> None:
        """No shared memory is ever held."""

    def get(self, row: ShardRound, following: Iterator[memoryview]) -> memoryview:
        payload = next(following, None)
        if payload is None:
            raise ProtocolError(f"a sum of {row.outside_size} bytes was announced, and did not follow its message")
        return payload

    def close(self) -> None:
        """It holds nothing."""


class DirectAggregator(AggregatorPlane):
    """The aggregator's end. It sends sums in messages until the worker talks on its data connection."""

    descriptors = 0
    uses_data_connection = True

    def __init__(self) -> None:
        self._connected = False

    @property
    def kind(self) -> pb.Plane.ValueType:
        return pb.PLANE_DIRECT if self._connected else pb.PLANE_INLINE

    def get(self, row: ShardRound) -> memoryview | None:
        return None

    async def receive(self, row: ShardRound, connection: DataConnection | None) -> memoryview:
        if connection is None:
            raise ProtocolError("a payload was announced that comes neither in the message nor elsewhere")
        return await connection.receive_payload(row.outside_size)

    def locate(self, size: int, offset: int | None) -> Location:
        return Location(outside_size=size, follows=True) if self._connected else Location(size)

    def connected(self, connection: DataConnection) -> None:
        self._connected = True

    def close(self) -> None:
        """The data connection belongs to the stream."""


def offer(address: str, terms: WorkerTerms) -> Offer | None:
    """Offers the plane to an aggregator; None: a unix socket has no other ports."""
    return None if address.startswith("unix:") else DirectOffer()


def needs(hello: pb.Hello, host: Host) -> int:
    """How many file descriptors the aggregator needs to accept a worker, besides those of its connections."""
    return 0


def accept(hello: pb.Hello, welcome: pb.Welcome, host: Host) -> AggregatorPlane | None:
    """Accepts a worker; None: this aggregator has no port for data connections."""
    return DirectAggregator() if host.data_port else None
