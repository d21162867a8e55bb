"""The shared memory of each job: where its sums lie that workers on this host read."""

import logging
from functools import partial

from psum.aggregator.core.job import Job
from psum.aggregator.service.descriptor_budget import DescriptorBudget
from psum.planes import ARENA_DESCRIPTORS, DEFAULT_LIMIT, Arena, Limit, PlaneError, sweep

_log = logging.getLogger(__name__)


class JobMemories:
    """Keeps the memory of each job from its first worker that shares memory to the end of the job.

    Removes at once what dead processes left in the directory.

    Args:
        directory: Where shared memory is kept.
        descriptors: The file descriptors of this process.
        limit: How full psum may make the file system there.

    Attributes:
        directory: Where shared memory is kept.
    """

    def __init__(self, directory: str, descriptors: DescriptorBudget, limit: Limit = DEFAULT_LIMIT) -> None:
        self.directory = directory
        self._limit = limit
        self._descriptors = descriptors
        self._arenas: dict[int, Arena] = {}
        """By identity of the job."""
        for name in sweep(directory):
            _log.info("removed %s from %s, whose owner is gone", name, directory)

    def of(self, job: Job) -> Arena | None:
        """A job's memory, None if none of its workers shares memory."""
        return self._arenas.get(id(job))

    def make(self, job: Job) -> Arena:
        """A job's memory, made if there is none yet.

        Raises:
            SegmentError: There is no shared memory in the directory.
        """
        arena = self._arenas.get(id(job))
        if arena is None:
            arena = self._arenas[id(job)] = Arena(self.directory, partial(_warn_of_messages, job.name), self._limit)
            self._descriptors.take(ARENA_DESCRIPTORS)
        return arena

    def release(self, job: Job) -> None:
        """Lets go of the memory of a job that has ended."""
        if (arena := self._arenas.pop(id(job), None)) is not None:
            arena.close()
            self._descriptors.give(ARENA_DESCRIPTORS)
            # What workers that were killed have left.
            sweep(self.directory)

    def close(self) -> None:
        """Lets go of all memory."""
        for arena in self._arenas.values():
            arena.close()


def _warn_of_messages(job: str, error: PlaneError) -> None:
    _log.warning(
        "job %s: further sums travel in messages, also to workers on this host, which is slower: %s",
        job,
        error,
        extra={"job": job},
    )
