"""CUDA's calls that do not wait for a GPU: copies, and events.

PyTorch's calls give the interpreter's lock up, also when an event is freed. Ten such calls for a tensor cost a thread
that shares the lock with others more than all its work. So psum calls the runtime itself where it can.
"""

import ctypes
from collections import deque
from typing import Any, Final, Protocol

import torch
from psum.cuda.runtime import error_text, runtime, that_keeps_the_lock
from psum.torch.tensors import byte_count, is_plain

#: cudaMemcpyKind.
_TO_DEVICE, _TO_HOST = 1, 2
#: cudaEventBlockingSync: a thread that waits for it sleeps. For other events it would keep a processor busy.
_BLOCKING: Final = 1
#: cudaEventDisableTiming: it takes less time.
_WITHOUT_TIME: Final = 2
#: cudaErrorNotReady.
_NOT_READY: Final = 600


class Calls(Protocol):
    """The calls for one GPU, which must be the calling thread's current one. They return at once.

    Raises:
        RuntimeError: The device has failed.
    """

    def record(self, stream: Any) -> Any:
        """See `Device`."""

    def wait(self, stream: Any, event: Any) -> None:
        """See `Device`."""

    def copy(self, stream: Any, target: torch.Tensor, source: torch.Tensor, *, pinned: bool) -> None:
        """See `Device`."""


class TorchCalls:
    """Those of PyTorch, for a process without a CUDA runtime of its own, such as one with ROCm."""

    def record(self, stream: Any) -> Any:
        """See `Calls`."""
        event = torch.cuda.Event(blocking=True)
        event.record(stream)
        return event

    def wait(self, stream: Any, event: Any) -> None:
        """See `Calls`."""
        stream.wait_event(event)

    def copy(self, stream: Any, target: torch.Tensor, source: torch.Tensor, *, pinned: bool) -> None:
        """See `Calls`."""
        target.copy_(source, non_blocking=True)


class _Event:
    """A point of a stream; see `Event`. When it is freed, its handle serves another one.

    Args:
        calls: The calls of its GPU.
        handle: CUDA's handle.
    """

    __slots__ = ("_calls", "handle")

    def __init__(self, calls: "RuntimeCalls", handle: int) -> None:
        self._calls = calls
        self.handle = handle

    def __del__(self) -> None:
        # What waits for it on streams has noted the point already.
        self._calls.idle.append(self.handle)

    def query(self) -> bool:
        """See `Event`."""
        code: int = self._calls.quick.cudaEventQuery(self.handle)
        if code not in (0, _NOT_READY):
            _check(code)
        return code == 0

    def synchronize(self) -> None:
        """See `Event`."""
        _check(self._calls.runtime.cudaEventSynchronize(ctypes.c_void_p(self.handle)))


class RuntimeCalls:
    """Those of the CUDA runtime.

    Args:
        library: The runtime.

    Attributes:
        runtime: The runtime, whose calls give the interpreter's lock up.
        quick: The same one, whose calls keep the lock.
        idle: Handles of events that are free.
    """

    def __init__(self, library: Any) -> None:
        self.runtime = library
        self.quick = quick = that_keeps_the_lock(library)
        self.idle: deque[int] = deque()
        address, number = ctypes.c_void_p, ctypes.c_uint
        quick.cudaEventQuery.argtypes = (address,)
        quick.cudaEventRecord.argtypes = (address, address)
        quick.cudaStreamWaitEvent.argtypes = (address, address, number)
        quick.cudaMemcpyAsync.argtypes = (address, address, ctypes.c_size_t, ctypes.c_int, address)

    def record(self, stream: Any) -> _Event:
        """See `Calls`."""
        try:
            handle = self.idle.popleft()
        except IndexError:
            made = ctypes.c_void_p()
            _check(self.quick.cudaEventCreateWithFlags(ctypes.byref(made), ctypes.c_uint(_BLOCKING | _WITHOUT_TIME)))
            assert made.value is not None
            handle = made.value
        event = _Event(self, handle)
        _check(self.quick.cudaEventRecord(handle, stream.cuda_stream))
        return event

    def wait(self, stream: Any, event: _Event) -> None:
        """See `Calls`."""
        _check(self.quick.cudaStreamWaitEvent(stream.cuda_stream, event.handle, 0))

    def copy(self, stream: Any, target: torch.Tensor, source: torch.Tensor, *, pinned: bool) -> None:
        """See `Calls`."""
        if pinned and is_plain(target) and is_plain(source):
            kind = _TO_DEVICE if target.is_cuda else _TO_HOST
            arguments = target.data_ptr(), source.data_ptr(), byte_count(source), kind, stream.cuda_stream
            _check(self.quick.cudaMemcpyAsync(*arguments))
        else:
            # May wait for the copy, or needs a kernel.
            target.copy_(source, non_blocking=True)


def calls() -> Calls:
    """Returns the calls for one GPU."""
    library = runtime()
    return TorchCalls() if library is None else RuntimeCalls(library)


def _check(code: int) -> None:
    if code:
        raise RuntimeError(error_text(code))
