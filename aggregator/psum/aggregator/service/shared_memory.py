"""Memory that is shared with workers on this host: what they push from, and each job's arena for sums."""

import logging
from typing import Final

import numpy as np

from psum.aggregator.core.job import Job
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.descriptor_budget import DescriptorBudget
from psum.aggregator.sums.arena import Arena
from psum.planes import DEFAULT_LIMIT, Limit, Segment, SegmentError, sweep
from psum.v1 import aggregator_pb2 as pb

_log = logging.getLogger(__name__)


#: An arena's file, and its mapping.
ARENA_DESCRIPTORS: Final = 2


class SharedMemories:
    """Opens workers' memory, and keeps the arenas. What others have left in the directory is removed first.

    Args:
        directory: Where shared memory is kept.
        limit: Up to where sums may fill the file system there.
        descriptors: Those of this process.
    """

    def __init__(self, directory: str, descriptors: DescriptorBudget, limit: Limit = DEFAULT_LIMIT) -> None:
        self._directory = directory
        self._limit = limit
        self._descriptors = descriptors
        self._arenas: dict[int, Arena] = {}
        """By identity of the job."""
        for name in sweep(directory):
            _log.info("removed %s from %s, whose owner is gone", name, directory)

    def needs(self, job: Job, hello: pb.Hello) -> int:
        """How many file descriptors it takes at most to share memory with a worker."""
        if pb.PLANE_SHM not in hello.planes or not hello.segment:
            return 0
        return 1 + bool(hello.staging) + (0 if id(job) in self._arenas else ARENA_DESCRIPTORS)

    def accept(self, job: Job, hello: pb.Hello, line: WorkerConnection, welcome: pb.Welcome) -> bool:
        """Shares memory with a worker and tells it where sums will lie; returns False where that cannot be, as on
        another host."""
        if pb.PLANE_SHM not in hello.planes or not hello.segment:
            return False
        try:
            # The worker's first: on another host it is not found, and no arena is needed.
            segment = Segment.open(self._directory, hello.segment)
            # It stays with the two who have it, and goes with them, however they end.
            segment.unlink()
            if id(job) not in self._arenas:
                self._arenas[id(job)] = Arena(self._directory, self._limit, job=job.name)
                self._descriptors.take(ARENA_DESCRIPTORS)
        except SegmentError as error:
            level = logging.WARNING if error.scarce else logging.DEBUG
            _log.log(level, "job %s: rank %d shares no memory: %s", job.name, hello.rank, error)
            return False
        line.segment, line.staging = segment, self._staging(hello)
        line.descriptors += 1 + bool(line.staging)
        self._descriptors.take(1 + bool(line.staging))
        welcome.segment, welcome.staging = self._arenas[id(job)].name, bool(line.staging)
        return True

    def arena(self, job: Job) -> Arena | None:
        """Where a job's sums lie, None where none of its workers shares memory."""
        return self._arenas.get(id(job))

    def release(self, job: Job) -> None:
        """A job has ended."""
        if (arena := self._arenas.pop(id(job), None)) is not None:
            arena.close()
            self._descriptors.give(ARENA_DESCRIPTORS)
            # What workers that were killed have left.
            sweep(self._directory)

    def close(self) -> None:
        """Nobody is served any more."""
        for arena in self._arenas.values():
            arena.close()

    def _staging(self, hello: pb.Hello) -> memoryview:
        """The memory that a worker pushes from without a copy, empty where there is none."""
        if not hello.staging:
            return memoryview(b"")
        try:
            segment = Segment.open(self._directory, hello.staging)
        except SegmentError as error:
            level = logging.WARNING if error.scarce else logging.DEBUG
            _log.log(level, "job %s: rank %d has no staging memory: %s", hello.job, hello.rank, error)
            return memoryview(b"")
        # As NumPy's memory: unlike what it has in the other one, the worker leaves it as it is until it has the sum,
        # and a round that waits need not copy it (see ShardRounds.keep).
        return np.frombuffer(segment.view, np.uint8).data
