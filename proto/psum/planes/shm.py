"""The shm plane: both processes are on one host, and payloads lie in memory that they share.

A worker puts contributions into a segment of its own, or pushes them from its staging memory without a copy. The
aggregator adds them up where they lie, and puts the sums into one memory for each job, from where all its workers read.
Messages, and payloads for which there is no room, travel on the data connection or the stream.
"""

import mmap
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from psum.planes.data_connection import DataConnection
from psum.planes.errors import PlaneError
from psum.planes.growing_segment import Block, GrowingSegment
from psum.planes.plane import AggregatorPlane, Host, Location, Offer, WorkerPlane, WorkerTerms
from psum.planes.segment import Segment, SegmentError, sweep
from psum.planes.slots import Slots
from psum.planes.space_limit import DEFAULT_LIMIT, Limit
from psum.v1 import aggregator_pb2 as pb
from psum.wire import OUTSIDE_BATCH_BYTES, ShardRound
from psum.wire.errors import ProtocolError

#: A worker's segment has this many times its credit: blocks that are taken leave gaps.
_SLACK: Final = 1.25

#: Which part of a payload in the staging memory counts against the credit. Sums of 8 MiB take the aggregator some
#: milliseconds, which is too little to let a worker announce the next ones in time.
_STAGED_DIVISOR: Final = 4

#: A job's memory for sums takes two file descriptors: its file, and its mapping.
ARENA_DESCRIPTORS: Final = 2


class ShmOffer(Offer):
    """Offers a segment of this worker's, and its staging memory if it has any.

    Raises:
        SegmentError: There is no shared memory in the directory.
    """

    kind = pb.PLANE_SHM

    def __init__(self, terms: WorkerTerms) -> None:
        self._terms = terms
        # Removes what an aggregator that was killed has left, perhaps the previous process of this one.
        sweep(terms.shm_directory)
        self._segment = Segment.create(terms.shm_directory, int(terms.credit_bytes * _SLACK), terms.shm_limit)

    def describe(self, hello: pb.Hello) -> None:
        hello.segment = self._segment.name
        hello.staging = self._terms.staging.name if self._terms.staging is not None else ""

    def accepted(self, welcome: pb.Welcome) -> WorkerPlane:
        try:
            sums = Segment.open(self._terms.shm_directory, welcome.segment)
        except SegmentError:
            self.close()
            raise
        try:
            self._segment.reserve(0, self._segment.size)
            room = self._segment.size
        except SegmentError as error:
            self._terms.lacking(error)
            room = 0
        return ShmWorker(self._segment, room, sums, self._terms.credit_bytes, reads_staging=welcome.staging)

    def close(self) -> None:
        self._segment.close()


class ShmWorker(WorkerPlane):
    """The worker's end.

    Args:
        segment: The worker's own segment; this closes it.
        room: How many bytes of it may be used: all, or none if there was not enough memory.
        sums: The job's memory for sums; this closes it.
        credit_bytes: How many bytes may be under way.
        reads_staging: Whether the aggregator has opened the worker's staging memory.
    """

    kind = pb.PLANE_SHM
    batch_bytes = OUTSIDE_BATCH_BYTES
    payloads_follow = False
    shares_sums = True

    def __init__(self, segment: Segment, room: int, sums: Segment, credit_bytes: int, *, reads_staging: bool) -> None:
        self.credit_bytes: int | None = credit_bytes
        self._segment = segment
        self._slots = Slots(room)
        self._sums = sums
        self._reads_staging = reads_staging
        self.staged_divisor = _STAGED_DIVISOR if reads_staging else 1

    def put(
        self, value: memoryview, staged: int | None, payloads: list[memoryview], following: list[memoryview]
    ) -> Location:
        size = len(value)
        if staged is not None and self._reads_staging:
            # Places in the staging memory count on from the end of the segment.
            return Location(0, self._segment.size + staged, size)
        offset = self._slots.take(size)
        if offset is None:
            payloads.append(value)
            return Location(size)
        self._segment.view[offset : offset + size] = value
        return Location(0, offset, size, held=True)

    def free(self, offset: int, size: int) -> None:
        self._slots.give(offset, size)

    def get(self, row: ShardRound, following: Iterator[memoryview]) -> memoryview:
        if row.offset + row.outside_size > self._sums.size:
            raise ProtocolError(
                f"a sum of {row.outside_size} bytes at {row.offset} of {self._sums.size} bytes of shared memory"
            )
        return self._sums.view[row.offset : row.offset + row.outside_size]

    def close(self) -> None:
        self._segment.close()
        self._sums.close()


class ShmAggregator(AggregatorPlane):
    """The aggregator's end.

    Args:
        segment: The worker's segment; this closes it.
        staging: The worker's staging memory, empty if it has none.
    """

    kind = pb.PLANE_SHM
    uses_data_connection = True

    def __init__(self, segment: Segment, staging: memoryview) -> None:
        self.descriptors = 1 + bool(staging)
        self._segment = segment
        self._staging = staging

    def get(self, row: ShardRound) -> memoryview | None:
        size = self._segment.size
        memory, start = self._staging, row.offset - size
        if start < 0:
            memory, start = self._segment.view, row.offset
        if start + row.outside_size > len(memory):
            raise ProtocolError(
                f"a shard of {row.outside_size} bytes at {row.offset} of shared memory; this worker shares"
                f" {size + len(self._staging)} bytes"
            )
        return memory[start : start + row.outside_size]

    async def receive(self, row: ShardRound, connection: DataConnection | None) -> memoryview:
        raise AssertionError("get has it")

    def locate(self, size: int, offset: int | None) -> Location:
        return Location(size) if offset is None else Location(0, offset, size)

    def connected(self, connection: DataConnection) -> None:
        """Only messages go there."""

    def close(self) -> None:
        self._segment.close()
        self._staging = memoryview(b"")


class Arena:
    """A job's shared memory for sums: one block for each shard.

    One block is enough: the sum of round r+1 is made after every rank has contributed to that round, so every rank has
    read the sum of round r. A worker that keeps a sum for the aggregator's next process keeps this memory with it.

    Args:
        directory: Where shared memory is kept.
        limit: How full psum may make the file system there.
        lacking: Told once when there is no memory for further sums, which then travel in messages.

    Raises:
        SegmentError: There is no shared memory in the directory.
    """

    def __init__(self, directory: str, lacking: Callable[[PlaneError], None], limit: Limit = DEFAULT_LIMIT) -> None:
        self._memory = GrowingSegment(directory, lacking, limit)
        self._blocks: dict[tuple[int, int], Block] = {}

    @property
    def name(self) -> str:
        """The name by which workers open it."""
        return self._memory.name

    def block(self, key: int, shard: int, size: int) -> Block | None:
        """The memory of a shard's sums, the same for every round; None if there is no memory for it.

        Args:
            key: The key's id.
            shard: The shard's number within the key.
            size: Bytes of the largest sum; the same in every call.
        """
        block = self._blocks.get((key, shard))
        if block is None and (block := self._memory.allocate(size)) is not None:
            self._blocks[key, shard] = block
        return block

    def close(self) -> None:
        """No further worker can open it. The memory goes with the last view of it."""
        self._blocks.clear()
        self._memory.close()


def is_lent(payload: memoryview) -> bool:
    """Whether a contribution lies in memory that its worker takes back with its credit.

    The worker's segment is such memory: when `taken` returns the credit, the worker uses the memory again. So the
    aggregator must have copied the contribution by then. Its staging memory is not, see `ShmAggregator`.
    """
    return isinstance(payload.obj, mmap.mmap)


def offer(address: str, terms: WorkerTerms) -> Offer | None:
    """Offers the plane to an aggregator, wherever that is: only one on this host finds the segment.

    Raises:
        SegmentError: There is no shared memory in the directory.
    """
    return ShmOffer(terms)


def needs(hello: pb.Hello, host: Host) -> int:
    """How many file descriptors the aggregator needs to accept a worker, besides those of its connections."""
    if not hello.segment:
        return 0
    return 1 + bool(hello.staging) + (0 if host.has_memory else ARENA_DESCRIPTORS)


def accept(hello: pb.Hello, welcome: pb.Welcome, host: Host) -> AggregatorPlane | None:
    """Accepts a worker, and tells it where sums will lie.

    Raises:
        PlaneError: The worker's segment cannot be opened, as on another host; or there is no memory for sums.
    """
    if not hello.segment:
        return None
    # The worker's first: on another host it is not found, and no memory for sums is needed.
    segment = Segment.open(host.shm_directory, hello.segment)
    # The two that have it keep it; without a name it goes with them, however they end.
    segment.unlink()
    try:
        welcome.segment = host.memory().name
    except PlaneError:
        segment.close()
        raise
    staging = _open_staging(hello, host)
    welcome.staging = bool(staging)
    return ShmAggregator(segment, staging)


def _open_staging(hello: pb.Hello, host: Host) -> memoryview:
    """The memory that a worker pushes from without a copy, empty if there is none."""
    if not hello.staging:
        return memoryview(b"")
    try:
        segment = Segment.open(host.shm_directory, hello.staging)
    except SegmentError as error:
        host.without("staging memory", error)
        return memoryview(b"")
    # As NumPy's memory, which a round that waits does not copy: unlike its segment, the worker leaves its staging
    # memory unchanged until it has the sum.
    return np.frombuffer(segment.view, np.uint8).data
