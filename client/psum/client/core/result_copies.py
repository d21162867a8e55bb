"""How results are copied out of shared memory: as usual, or past the processor's caches."""

import statistics
from collections.abc import Callable
from typing import Final

#: Copies bytes to the first argument from the second.
Copy = Callable[[memoryview, memoryview], None]

#: The least bytes of a copy that goes past the caches.
_LEAST_BYTES: Final = 256 << 10

#: A target is in no cache any more after so many bytes were copied elsewhere. While it is in one, a copy past the
#: caches costs more than it saves: whoever reads the result next must fetch it from memory.
_FAR_BYTES: Final = 32 << 20

#: How many copies of each kind a trial compares, and how many follow it. So a trial costs less than one percent.
_TRIAL_COPIES: Final = 12
_COPIES_UNTIL_TRIAL: Final = 2048

#: Which part of the usual time is small enough. A trial on a busy machine is wrong by some percent.
_CLEARLY: Final = 0.93


class Trial:
    """Compares two ways to copy by their processor time, in turns."""

    def __init__(self) -> None:
        self._costs: tuple[list[float], list[float]] = [], []
        """Seconds per byte of usual and of streaming copies."""
        self._left = 0
        self._streams = False

    @property
    def is_due(self) -> bool:
        """Whether the next copy is part of a trial, and to be measured."""
        return not self._left

    def streams(self) -> bool:
        """Whether the next copy is a streaming one."""
        if self._left:
            self._left -= 1
            return self._streams
        usual, streaming = self._costs
        return len(streaming) < len(usual)

    def note(self, streamed: bool, seconds: float, size: int) -> None:
        """Notes how long a copy of a trial took."""
        self._costs[streamed].append(seconds / size)
        usual, streaming = self._costs
        if min(len(usual), len(streaming)) >= _TRIAL_COPIES:
            self._streams = statistics.median(streaming) <= statistics.median(usual) * _CLEARLY
            self._costs = [], []
            self._left = _COPIES_UNTIL_TRIAL


class ResultCopies:
    """Copies results to their targets. Used from one thread.

    Args:
        stream: Copies past the caches. None: every copy is a usual one.
        clock: The processor time of this thread, in seconds.
    """

    def __init__(self, stream: Copy | None, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._trial = Trial()
        self._copied = _FAR_BYTES

    def copy(self, target: memoryview, result: memoryview, last: int) -> int:
        """Copies one result.

        Args:
            target: Where it is copied to.
            result: The result, of the same size, in memory apart from the target.
            last: What this returned for the last copy to the same target, 0 if there was none.

        Returns:
            How many bytes were copied in all.
        """
        size = len(result)
        far = self._copied - last >= _FAR_BYTES
        self._copied += size
        if self._stream is None or not far or size < _LEAST_BYTES:
            target[:] = result
            return self._copied
        measured, streams = self._trial.is_due, self._trial.streams()
        begin = self._clock() if measured else 0.0
        if streams:
            self._stream(target, result)
        else:
            target[:] = result
        if measured:
            self._trial.note(streams, self._clock() - begin, size)
        return self._copied
