"""What a plane promises: how payloads of 64 KiB and more cross between one worker and one aggregator.

A plane has two ends. The worker offers it in hello; the aggregator accepts one of the planes offered and says so in
welcome. From then on each end puts payloads where the other end gets them, until the stream ends. Smaller payloads
always travel in the message. Every stream has planes of its own, so the workers of one job may use different planes.

Both ends promise: a payload that was put can be got unchanged until the receiver has answered the message; what lies
outside of the memory that was agreed on is a ProtocolError; `close` may be called once, at any time, and views that
somebody still holds stay valid after it.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from psum.planes.data_connection import DataConnection
from psum.planes.errors import PlaneError
from psum.planes.growing_segment import GrowingSegment
from psum.planes.space_limit import Limit
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound


class Location(NamedTuple):
    """Where the receiver of a message finds one payload: three columns of psum.v1.ShardRounds, and what becomes of it.

    Attributes:
        length: Bytes in the message, 0 if the payload is elsewhere.
        offset: Offset in the sender's shared memory, in bytes.
        outside_size: Bytes outside of the message, 0 if the payload is in it.
        held: Whether the sender must `free` the memory after the receiver has taken the payload.
        follows: Whether the payload follows the message on the data connection.
    """

    length: int = 0
    offset: int = 0
    outside_size: int = 0
    held: bool = False
    follows: bool = False


class WorkerPlane(Protocol):
    """The worker's end, for one stream. Used from the client's thread.

    Attributes:
        kind: Which plane it is.
        batch_bytes: How many bytes of contributions one message may announce.
        credit_bytes: How many bytes may be under way; None: as many as the settings say.
        staged_divisor: Of a payload that is read from the staging memory, only this part, one of so many, counts
            against the credit: it takes no further memory, and the time until it is read is short.
        payloads_follow: Whether payloads follow their message on the data connection, sent from their owner's memory.
            Then the plane needs a data connection, and the stream must end before that memory changes.
        shares_sums: Whether sums outside of messages lie in memory that the aggregator shares; see MappedSums.
    """

    kind: pb.Plane.ValueType
    batch_bytes: int
    credit_bytes: int | None
    staged_divisor: int
    payloads_follow: bool
    shares_sums: bool

    def put(
        self, value: memoryview, staged: int | None, payloads: list[memoryview], following: list[memoryview]
    ) -> Location:
        """Puts a contribution where the aggregator gets it.

        Args:
            value: The contribution, flat bytes; unchanged until the aggregator has answered.
            staged: Its offset in the staging memory, None if it lies elsewhere.
            payloads: What goes into the message, in order; the plane may append to it.
            following: What follows the message on the data connection, in order; the plane may append to it.
        """

    def free(self, offset: int, size: int) -> None:
        """Frees memory that is `held`: the aggregator has taken the contribution of this size."""

    def get(self, row: ShardRound, following: Iterator[memoryview]) -> memoryview:
        """A sum that lies outside of its message. It stays unchanged until this worker pushes to the next round.

        Args:
            row: The sum's row, with `outside_size` above 0.
            following: The payloads that followed the message and were not used yet.

        Raises:
            ProtocolError: The row points outside of what the aggregator may use.
        """

    def close(self) -> None:
        """Lets go of everything. Views that are still held stay valid."""


class Offer(Protocol):
    """A plane that a worker offers to an aggregator in one hello."""

    kind: pb.Plane.ValueType

    def describe(self, hello: pb.Hello) -> None:
        """Adds what the aggregator must know to accept it."""

    def accepted(self, welcome: pb.Welcome) -> WorkerPlane:
        """The aggregator has chosen this plane; the worker's end takes over what the offer holds.

        Raises:
            PlaneError: What the aggregator named cannot be used. The offer is closed.
        """

    def close(self) -> None:
        """Withdraws the offer."""


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerTerms:
    """What a worker gives to the planes that it offers.

    Attributes:
        shm_directory: Where shared memory is kept.
        shm_limit: How full psum may make the file system there.
        credit_bytes: How many bytes may be under way to one aggregator.
        staging: Memory that aggregators on this host may read contributions from, None if there is none.
        lacking: Told when there is no shared memory for contributions, which then travel in messages.
    """

    shm_directory: str
    shm_limit: Limit
    credit_bytes: int
    staging: GrowingSegment | None
    lacking: Callable[[PlaneError], None]


class AggregatorPlane(Protocol):
    """The aggregator's end towards one worker, for one stream. Used from the aggregator's event loop.

    Attributes:
        descriptors: How many file descriptors it holds.
        uses_data_connection: Whether messages, or payloads too, go over a data connection if the worker opens one.
    """

    descriptors: int
    uses_data_connection: bool

    @property
    def kind(self) -> pb.Plane.ValueType:
        """How large payloads cross now."""

    def get(self, row: ShardRound) -> memoryview | None:
        """A contribution that lies outside of its message; None: it follows the message, see `receive`.

        Args:
            row: The contribution's row, with `outside_size` above 0.

        Raises:
            ProtocolError: The row points outside of what the worker shares.
        """

    async def receive(self, row: ShardRound, connection: DataConnection | None) -> memoryview:
        """A contribution that follows its message.

        Args:
            row: As `get` was given it.
            connection: The data connection on which the message came, None if it came on the stream.

        Raises:
            ProtocolError: Nothing follows there, or something else does.
            ConnectionResetError: The data connection broke.
        """

    def locate(self, size: int, offset: int | None) -> Location:
        """Where this worker is told to find a sum. Equal locations share one message.

        Args:
            size: The sum's size in bytes.
            offset: The sum's offset in the job's shared memory, None if it does not lie there.
        """

    def connected(self, connection: DataConnection) -> None:
        """The worker talks on its data connection from now on."""

    def close(self) -> None:
        """Lets go of everything. Views that are still held stay valid."""


class SumMemory(Protocol):
    """A job's shared memory for sums, as planes see it.

    Attributes:
        name: The name by which workers open it.
    """

    @property
    def name(self) -> str: ...


class Host(Protocol):
    """What an aggregator gives to a plane that accepts a worker.

    Attributes:
        shm_directory: Where shared memory is kept.
        data_port: The port for data connections, 0 if there is none.
        has_memory: Whether the job has shared memory for sums already.
    """

    shm_directory: str
    data_port: int

    @property
    def has_memory(self) -> bool: ...

    def memory(self) -> SumMemory:
        """The job's shared memory for sums, made if there is none yet.

        Raises:
            PlaneError: It cannot be made.
        """

    def without(self, what: str, error: PlaneError) -> None:
        """Notes that the worker goes on without something, and why."""
