"""The way of tensors on one device to psum and back, without a wait in the program's threads.

A transfer has four steps. The program's thread marks the point of its stream at which the value is there. The copying
thread queues the copy to host memory on the stream `down`, behind that point. The waiting thread waits until the copy
is done, and starts the operation. When psum has the result, the copying thread queues the copy to the device on the
stream `up`, and says that the transfer is done: whatever comes after that on `up` comes after the result.
"""

import atexit
import contextlib
import functools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import torch
from psum.client import Block, Client, PsumError
from psum.client.weak_allocator import weak_allocator
from psum.torch.staging.background_thread import Worker
from psum.torch.staging.buffers import BufferPool
from psum.torch.staging.device import Device, Event
from psum.torch.staging.host_memory import HostMemory
from psum.torch.staging.request import Request
from psum.torch.tensors import byte_count, described

#: How long the end of the process waits for transfers.
_EXIT_SECONDS: Final = 2.0

_Done = Callable[[PsumError | None], None]


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

    __slots__ = ("buffer", "done", "produced", "takes", "tensor")

    def __init__(self, tensor: torch.Tensor, done: _Done, produced: Event, *, takes: bool) -> None:
        self.takes = takes
        # Keeps the memory until the copy to it is queued. From then on, `Device.keep` does so.
        self.tensor = tensor
        self.done = done
        self.produced = produced
        self.buffer: _Buffer | None = None

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
        self._queued: deque[tuple[Request, _Transfer]] = deque()
        """Transfers that have no memory yet."""
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
        self._copying.do(functools.partial(self._admit, request, transfer))

    def drain(self, timeout: float) -> bool:
        """Waits until all transfers are done. Returns False if some are not after timeout seconds."""
        with self._counting:
            return self._counting.wait_for(lambda: not self._count, timeout)

    # In the copying thread.

    def _admit(self, request: Request, transfer: _Transfer) -> None:
        self._queued.append((request, transfer))
        self._admit_queued()

    def _admit_queued(self) -> None:
        """Lends memory to those that wait for it, as far as there is some."""
        while self._queued:
            request, transfer = self._queued[0]
            try:
                transfer.buffer = self._buffers.take(byte_count(transfer.tensor))
                if transfer.buffer is None:
                    return
                self._queued.popleft()
                copied = self._bring_down(transfer, transfer.buffer, gives=request.gives or request.stands_in)
            except Exception as error:
                if transfer.buffer is None:
                    self._queued.popleft()
                self._abort(request, transfer, error)
            else:
                self._waiting.do(functools.partial(self._start, request, transfer, copied))

    def _bring_down(self, transfer: _Transfer, buffer: _Buffer, *, gives: bool) -> Event:
        """Queues the copy of the value. Returns an event after which psum may use the buffer."""
        device, down = self._device, self._device.down
        down.wait_event(transfer.produced)
        if buffer.last_copy is not None:
            down.wait_event(buffer.last_copy)
        if gives:
            with device.use(down):
                # The transfer keeps the tensor until the waiting thread has waited for this copy.
                device.copy(transfer.host(), transfer.tensor)
        return device.record(down)

    def _bring_up(self, transfer: _Transfer, error: PsumError | None) -> None:
        """Queues the copy of the result, and ends the transfer."""
        device, up, buffer = self._device, self._device.up, transfer.buffer
        assert buffer is not None
        if error is not None:
            # An aggregator may still read the memory for other ranks.
            self._buffers.drop(buffer)
            self._end(transfer, error)
            return
        try:
            # The waiting thread has waited for the point at which the program began the transfer. So nothing that the
            # program queued before, such as reading the old value, comes after this copy.
            if transfer.takes:
                with device.use(up):
                    device.copy(transfer.tensor, transfer.host())
                device.keep(transfer.tensor, up)
                buffer.last_copy = device.record(up)
        except Exception as failure:
            self._buffers.drop(buffer)
            self._end(transfer, _device_error(transfer, "to", failure))
            return
        self._buffers.give_back(buffer)
        self._end(transfer, None)

    def _abort(self, request: Request, transfer: _Transfer, failure: Exception) -> None:
        """Ends a transfer whose value does not come: on all ranks, its key fails."""
        if transfer.buffer is not None:
            self._buffers.drop(transfer.buffer)
        error = _device_error(transfer, "from", failure)
        # RuntimeError: the operation was started, and what came then failed.
        with contextlib.suppress(RuntimeError):
            request.ticket.abort(str(error))
        self._end(transfer, error)

    def _end(self, transfer: _Transfer, error: PsumError | None) -> None:
        try:
            with contextlib.ExitStack() as stack:
                try:
                    if error is None:
                        stack.enter_context(self._device.use(self._device.up))
                except Exception as failure:
                    error = _device_error(transfer, "to", failure)
                transfer.done(error)
        finally:
            with self._counting:
                self._count -= 1
                self._counting.notify_all()
            self._admit_queued()

    # In the waiting thread.

    def _start(self, request: Request, transfer: _Transfer, copied: Event) -> None:
        assert transfer.buffer is not None
        try:
            copied.synchronize()
            request.start(
                transfer.host(),
                lambda error: self._copying.do(functools.partial(self._bring_up, transfer, error)),
                transfer.buffer.memory.offset,
            )
        except Exception as error:
            self._copying.do(functools.partial(self._abort, request, transfer, error))


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
