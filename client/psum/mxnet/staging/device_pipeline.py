"""The way of a device's arrays to psum and back, in one thread beside the training and MXNet's engine.

MXNet's engine hands an array over when its value is there. This thread copies it to a stage, and starts its sum. When
psum has the sum, the thread copies it to the device, and gives the array back to the engine. It queues many copies at
once and waits for all of them together: a thread that waits often would have to get the interpreter's lock as often,
and that takes longer than a copy.
"""

import heapq
import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from psum.mxnet.staging.host_memory import worker

_log = logging.getLogger(__name__)

#: About so many bytes are copied to the host at once. Their sums begin when all have been copied.
_BATCH_BYTES: Final = 8 << 20


class Copies(Protocol):
    """Copies of one device; see CudaCopies."""

    def begin(self) -> None: ...

    def to_host(self, target: int, source: int, size: int, *, pinned: bool) -> None: ...

    def to_device(self, target: int, source: int, size: int, *, pinned: bool) -> None: ...

    def wait(self) -> None: ...


class Transfer(Protocol):
    """One array's way. The thread calls all of this.

    Attributes:
        device: The number of the device.
        nbytes: The size of the array in bytes.
        priority: Higher values are copied to the host first.
    """

    device: int
    nbytes: int
    priority: int

    def queue_down(self, copies: Copies) -> bool:
        """Queues the copy to the host. Returns False if it has to wait; then it comes again by itself."""

    def is_down(self) -> None:
        """The copy to the host is there."""

    def queue_up(self, copies: Copies) -> bool:
        """Queues the copy to the device. Returns False if there is nothing to copy."""

    def end(self) -> None:
        """All is done, or nothing more will be."""

    def fail(self, error: Exception) -> None:
        """Something failed; it ends."""


class DevicePipeline:
    """Moves arrays between devices and host memory. From any thread.

    Args:
        copies_of: Gives the copies of a device. Called in the pipeline's thread.
        do: Does work in the pipeline's thread.
    """

    def __init__(
        self, copies_of: Callable[[int], Copies], do: Callable[[Callable[[], None]], None] = worker.do
    ) -> None:
        self._copies_of = copies_of
        self._do = do
        self._arrived: deque[Transfer] = deque()
        """Transfers whose value is there."""
        self._returned: deque[Transfer] = deque()
        """Transfers whose sum is there, or has failed."""
        self._scheduled = False
        self._numbers = itertools.count()
        self._down: list[tuple[int, int, Transfer]] = []
        """What is to be copied to the host, as a heap."""

    def bring_down(self, transfer: Transfer) -> None:
        """Queues the copy of a value to the host."""
        self._arrived.append(transfer)
        self._schedule()

    def bring_up(self, transfer: Transfer) -> None:
        """Queues the copy of a sum to the device."""
        self._returned.append(transfer)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._do(self._move)

    def _move(self) -> None:
        # First, so that whatever comes from now on schedules this again.
        self._scheduled = False
        while True:
            up, down = self._next()
            if not up and not down:
                return
            for device in {transfer.device for transfer in itertools.chain(up, down)}:
                self._move_of(
                    device,
                    [transfer for transfer in up if transfer.device == device],
                    [transfer for transfer in down if transfer.device == device],
                )

    def _next(self) -> tuple[list[Transfer], list[Transfer]]:
        """Returns all sums that are there, and the next values, the most urgent first."""
        up = [self._returned.popleft() for _ in range(len(self._returned))]
        while self._arrived:
            transfer = self._arrived.popleft()
            heapq.heappush(self._down, (-transfer.priority, next(self._numbers), transfer))
        down, nbytes = [], 0
        while self._down and nbytes < _BATCH_BYTES:
            transfer = heapq.heappop(self._down)[2]
            nbytes += transfer.nbytes
            down.append(transfer)
        return up, down

    def _move_of(self, device: int, up: Sequence[Transfer], down: Sequence[Transfer]) -> None:
        copying: list[Transfer] = []
        lowered: list[Transfer] = []
        try:
            copies = self._copies_of(device)
            copies.begin()
        except Exception as error:
            for transfer in itertools.chain(up, down):
                _fail(transfer, error)
            return
        for transfer in up:
            try:
                if transfer.queue_up(copies):
                    copying.append(transfer)
                else:
                    transfer.end()
            except Exception as error:
                _fail(transfer, error)
        for transfer in down:
            try:
                if transfer.queue_down(copies):
                    lowered.append(transfer)
            except Exception as error:
                _fail(transfer, error)
        if not copying and not lowered:
            return
        try:
            copies.wait()
        except Exception as error:
            for transfer in itertools.chain(copying, lowered):
                _fail(transfer, error)
            return
        for transfer in lowered:
            _try(transfer, transfer.is_down)
        for transfer in copying:
            _try(transfer, transfer.end)


def _try(transfer: Transfer, do: Callable[[], None]) -> None:
    try:
        do()
    except Exception as error:
        _fail(transfer, error)


def _fail(transfer: Transfer, error: Exception) -> None:
    try:
        transfer.fail(error)
    except Exception:
        _log.exception("%r could not be ended after %r", transfer, error)
