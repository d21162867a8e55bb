"""The way of tensors on one device to psum and back, without a wait in the program's threads.

A transfer has four steps. The program's thread marks the point of its stream at which the value is there. The copying
thread queues the copy to host memory on the stream `down`, behind that point. The waiting thread waits until the copy
is done, and starts the operation. When psum has the result, the copying thread queues the copy to the device on the
stream `up`, and says that the transfer is done: whatever comes after that on `up` comes after the result.

Each thread does everything that has come in one go, because getting the interpreter's lock back may take it 5 ms:
psum's client holds the lock while it copies sums. If the waiting thread gave the lock up for each value, an urgent
value, which is copied last, could come to psum when most sums are there.
"""

import atexit
import contextlib
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import torch
from psum.client import Block, Client, PsumError
from psum.client.weak_allocator import weak_allocator
from psum.torch.staging.background_thread import Worker
from psum.torch.staging.buffers import BufferPool
from psum.torch.staging.device import Device, Event
from psum.torch.staging.host_memory import HostMemory
from psum.torch.staging.request import Request
from psum.torch.tensors import byte_count, described

_log = logging.getLogger(__name__)

#: How long the end of the process waits for transfers.
_EXIT_SECONDS: Final = 2.0

_Done = Callable[[PsumError | None], None]

_Item = TypeVar("_Item")


class Thread(Protocol):
    """Does work in order, beside its callers."""

    def do(self, work: Callable[[], None]) -> None: ...

    def stop(self) -> None: ...


class _Buffer:
    """Host memory, with what the device may still do with it.

    Attributes:
        memory: The memory.
        last_copy: The last copy out of it that was queued; None before the first.
    """

    def __init__(self, memory: HostMemory) -> None:
        self.memory = memory
        self.last_copy: Event | None = None

    @property
    def size(self) -> int:
        return self.memory.size


class _Transfer:
    """One operation on a tensor of the device.

    It has no reference to the request, whose ticket has one to it: a cycle would keep the tensor until the garbage
    collector runs.
    """

    __slots__ = ("buffer", "done", "error", "produced", "takes", "tensor")

    def __init__(self, tensor: torch.Tensor, done: _Done, produced: Event, *, takes: bool) -> None:
        self.takes = takes
        # Keeps the memory until the copy to it is queued. From then on, `Device.keep` does so.
        self.tensor = tensor
        self.done = done
        self.produced = produced
        self.buffer: _Buffer | None = None
        self.error: PsumError | None = None
        """Why it fails."""

    def host(self) -> torch.Tensor:
        """The tensor's value in host memory."""
        assert self.buffer is not None
        return self.buffer.memory.tensor(self.tensor)


class Pipeline:
    """Brings values from a device to psum, and results back.

    Host memory is lent in the order of the calls. So the oldest transfer that is not done has always got some: when all
    ranks call in the same order, none waits for memory that is lent to a transfer which waits for another rank.

    Args:
        device: The device.
        allocate: Allocates memory that aggregators on this host read from; returns None if there is none.
        budget: How much host memory the transfers may have, in bytes. Transfers beyond it wait until others are done.
        copying: The thread that queues copies.
        waiting: The thread that waits for the device.
    """

    def __init__(
        self,
        device: Device,
        allocate: Callable[[int], Block | None],
        *,
        budget: int,
        copying: Thread,
        waiting: Thread,
    ) -> None:
        self._device = device
        self._copying = copying
        self._waiting = waiting
        self._buffers = BufferPool[_Buffer](budget, lambda size: _Buffer(HostMemory(size, device, allocate)))
        self._begun: deque[tuple[Request, _Transfer]] = deque()
        """Transfers that the copying thread has not seen yet."""
        self._queued: deque[tuple[Request, _Transfer]] = deque()
        """Transfers that have no memory yet."""
        self._lowered: deque[tuple[Request, _Transfer, Event]] = deque()
        """Transfers whose copies to host memory are queued, with what follows them."""
        self._returned: deque[_Transfer] = deque()
        """Transfers whose operations have ended, or will never begin."""
        self._copies_due = self._starts_due = False
        """Whether each thread is about to look for work."""
        self._count = 0
        """Transfers that are not done."""
        self._counting = threading.Condition()

    @classmethod
    def of(cls, client: Client, device: Device) -> "Pipeline":
        """Returns the pipeline of a client for a device."""
        with _making:
            pipelines = _pipelines.setdefault(client, {})
            pipeline = pipelines.get(device)
            if pipeline is None:
                threads = Worker("psum-copies"), Worker("psum-waits")
                pipeline = pipelines[device] = cls(
                    device,
                    weak_allocator(client),
                    budget=client.settings.device_buffers,
                    copying=threads[0],
                    waiting=threads[1],
                )
                for thread in threads:
                    weakref.finalize(pipeline, thread.stop).atexit = False
            return pipeline

    def begin(self, request: Request, tensor: torch.Tensor, done: _Done) -> None:
        """Starts a reserved operation with the value that the tensor has at this point of the current stream.

        Returns at once. From any thread.

        Args:
            request: The operation.
            tensor: A dense tensor on the device, with at least one element.
            done: Called exactly once, in a thread whose current stream comes after the result.
        """
        produced = self._device.record(self._device.current_stream())
        transfer = _Transfer(tensor, done, produced, takes=request.takes)
        with self._counting:
            self._count += 1
        self._begun.append((request, transfer))
        self._schedule_copies()

    def drain(self, timeout: float) -> bool:
        """Waits until all transfers are done. Returns False if some are not after timeout seconds."""
        with self._counting:
            return self._counting.wait_for(lambda: not self._count, timeout)

    def _schedule_copies(self) -> None:
        if not self._copies_due:
            self._copies_due = True
            self._copying.do(self._copy)

    # In the copying thread.

    def _copy(self) -> None:
        """Queues copies. Those to the device come first: somebody waits for them, and they free memory for others."""
        # First, so that whatever comes from now on schedules this again.
        self._copies_due = False
        while self._returned or self._begun:
            if self._returned:
                self._bring_up(_taken(self._returned))
            self._queued += _taken(self._begun)
            if self._queued:
                self._admit()

    def _admit(self) -> None:
        """Lends memory to those that wait for it, as far as there is some, and queues their copies to host memory."""
        try:
            with self._device.use(self._device.down):
                while self._queued and self._admit_next():
                    pass
        except Exception as failure:
            for request, transfer in _taken(self._queued):
                self._abort(request, transfer, failure)
        if self._lowered and not self._starts_due:
            self._starts_due = True
            self._waiting.do(self._start)

    def _admit_next(self) -> bool:
        """Does that for one. Returns False if there is no memory for it yet."""
        request, transfer = self._queued[0]
        try:
            transfer.buffer = self._buffers.take(byte_count(transfer.tensor))
            if transfer.buffer is None:
                return False
            copied = self._bring_down(transfer, transfer.buffer, gives=request.gives or request.stands_in)
        except Exception as failure:
            self._abort(request, transfer, failure)
        else:
            self._lowered.append((request, transfer, copied))
        self._queued.popleft()
        return True

    def _bring_down(self, transfer: _Transfer, buffer: _Buffer, *, gives: bool) -> Event:
        """Queues the copy of the value. Returns an event after which psum may use the buffer."""
        device, down = self._device, self._device.down
        device.wait(down, transfer.produced)
        if buffer.last_copy is not None:
            device.wait(down, buffer.last_copy)
        if gives:
            # The transfer keeps the tensor until the waiting thread has waited for this copy.
            device.copy(down, transfer.host(), transfer.tensor, pinned=buffer.memory.pinned)
        return device.record(down)

    def _bring_up(self, returned: deque[_Transfer]) -> None:
        """Queues the copies of results, and ends the transfers."""
        device, up = self._device, self._device.up
        try:
            with device.use(up):
                for transfer in returned:
                    if transfer.error is None and transfer.takes:
                        self._copy_up(transfer, transfer.buffer)
                last_copy = device.record(up)
                while returned:
                    self._end(returned.popleft(), last_copy)
        except Exception as failure:
            while returned:
                transfer = returned.popleft()
                transfer.error = transfer.error or _device_error(transfer, "to", failure)
                self._end(transfer, None)

    def _copy_up(self, transfer: _Transfer, buffer: _Buffer | None) -> None:
        """Queues the copy of a result.

        The waiting thread has waited for the point at which the program began the transfer. So nothing that the program
        queued before, such as reading the old value, comes after this copy.
        """
        assert buffer is not None
        device, up = self._device, self._device.up
        try:
            device.copy(up, transfer.tensor, transfer.host(), pinned=buffer.memory.pinned)
            device.keep(transfer.tensor, up)
        except Exception as failure:
            transfer.error = _device_error(transfer, "to", failure)

    def _end(self, transfer: _Transfer, last_copy: Event | None) -> None:
        """Gives the buffer back, and says that the transfer is done.

        Args:
            transfer: The transfer.
            last_copy: What follows the copy of its result, if it has not failed.
        """
        if (buffer := transfer.buffer) is not None:
            if transfer.error is not None:
                # An aggregator may still read the memory for other ranks.
                self._buffers.drop(buffer)
            else:
                if transfer.takes:
                    buffer.last_copy = last_copy
                self._buffers.give_back(buffer)
        try:
            transfer.done(transfer.error)
        except Exception:
            _log.exception("what was to follow the sum of %s failed", described(transfer.tensor))
        finally:
            with self._counting:
                self._count -= 1
                self._counting.notify_all()

    # In the waiting thread.

    def _start(self) -> None:
        """Starts all operations whose copies are queued."""
        self._starts_due = False
        while self._lowered:
            self._start_next()

    def _start_next(self) -> None:
        """Waits for the next value, and starts the operations of all that are in host memory, the most urgent first."""
        arrived = [self._lowered.popleft()]
        request, transfer, copied = arrived[0]
        try:
            if not copied.query():
                copied.synchronize()
        except Exception as failure:
            self._abort(request, transfer, failure)
            return
        while self._lowered and _is_reached(self._lowered[0][2]):
            arrived.append(self._lowered.popleft())
        arrived.sort(key=lambda each: -each[0].ticket.priority)
        for request, transfer, _ in arrived:
            self._start_one(request, transfer)

    def _start_one(self, request: Request, transfer: _Transfer) -> None:
        assert transfer.buffer is not None

        def ended(error: PsumError | None) -> None:
            transfer.error = error
            self._returned.append(transfer)
            self._schedule_copies()

        try:
            request.start(transfer.host(), ended, transfer.buffer.memory.offset)
        except Exception as failure:
            self._abort(request, transfer, failure)

    # In both.

    def _abort(self, request: Request, transfer: _Transfer, failure: Exception) -> None:
        """Ends a transfer whose value does not come: on all ranks, its key fails."""
        transfer.error = _device_error(transfer, "from", failure)
        # RuntimeError: the operation was started, and what came then failed.
        with contextlib.suppress(RuntimeError):
            request.ticket.abort(str(transfer.error))
        self._returned.append(transfer)
        self._schedule_copies()


def _taken(queue: deque[_Item]) -> deque[_Item]:
    """Takes what is in a queue, to which other threads may append."""
    return deque(queue.popleft() for _ in range(len(queue)))


def _is_reached(event: Event) -> bool:
    """Whether an event is reached. If the device has failed, who waits for the event hears of it."""
    try:
        return event.query()
    except Exception:
        return False


def _device_error(transfer: _Transfer, direction: str, error: Exception) -> PsumError:
    result = PsumError(f"the copy {direction} the device of {described(transfer.tensor)} failed: {error}")
    result.__cause__ = error
    return result


_pipelines: "weakref.WeakKeyDictionary[Client, dict[Any, Pipeline]]" = weakref.WeakKeyDictionary()
_making: Final = threading.RLock()
"""Reentrant: a signal's handler may begin a transfer anywhere."""


@atexit.register
def _drain_all() -> None:
    """Lets transfers end before the interpreter takes their threads away."""
    deadline = time.monotonic() + _EXIT_SECONDS
    for client, pipelines in list(_pipelines.items()):
        for pipeline in () if client.forked else pipelines.values():
            pipeline.drain(max(0.0, deadline - time.monotonic()))
