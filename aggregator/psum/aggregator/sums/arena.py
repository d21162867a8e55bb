"""Where the sums of one job lie that its workers on this host read from shared memory."""

import logging

from psum.planes import DEFAULT_LIMIT, Block, GrowingSegment, Limit, SegmentError

_log = logging.getLogger(__name__)


class Arena:
    """One place for each shard's last sum.

    One is enough: the sum of round r+1 is made when every rank has contributed to that round, hence has taken out the
    sum of round r. A worker that keeps a sum for another aggregator process keeps this memory with it, though the
    process that wrote it is gone.

    Args:
        directory: Where shared memory is kept.
        limit: Up to where it may fill the file system there.
        job: The job's name, for the log.

    Raises:
        SegmentError: There is none.
    """

    def __init__(self, directory: str, limit: Limit = DEFAULT_LIMIT, *, job: str) -> None:
        self._memory = GrowingSegment(directory, self._warn, limit)
        self._job = job
        self._blocks: dict[tuple[int, int], Block] = {}

    @property
    def name(self) -> str:
        """By which workers open it."""
        return self._memory.name

    def place(self, key: int, shard: int, size: int) -> Block | None:
        """The place of a shard's sums; None where there is no memory for it."""
        block = self._blocks.get((key, shard))
        if block is None and (block := self._memory.allocate(size)) is not None:
            self._blocks[key, shard] = block
        return block

    def close(self) -> None:
        """Nobody needs it any more."""
        self._blocks.clear()
        self._memory.close()

    def _warn(self, error: SegmentError) -> None:
        _log.warning(
            "job %s: further sums travel in messages, also to workers on this host, which is slower: %s",
            self._job,
            error,
            extra={"job": self._job},
        )
