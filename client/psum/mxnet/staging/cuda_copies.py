"""Copies between host memory and a GPU, on streams of psum's own."""

import ctypes
import functools
from typing import Any, Final

from psum.cuda.runtime import error_text, runtime, that_keeps_the_lock

#: cudaMemcpyKind.
_TO_DEVICE, _TO_HOST = 1, 2
#: cudaStreamNonBlocking: it does not wait for the default stream, nor that for it.
_NON_BLOCKING: Final = 1


class CopyError(Exception):
    """CUDA could not copy. The text says why."""


class CudaCopies:
    """Copies of one GPU. For one thread, which does nothing else with CUDA than psum's other functions do.

    MXNet 1.9 says that an array is ready when the GPU has computed it, not when the computation is queued. So copies
    wait for nothing but each other.

    Args:
        device: The GPU's number, which this process uses.

    Raises:
        CopyError: CUDA refused a stream.
    """

    def __init__(self, device: int) -> None:
        self._device = device
        self._runtime = runtime()
        quick = that_keeps_the_lock(self._runtime)
        types = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
        self._queue, self._copy = quick.cudaMemcpyAsync, self._runtime["cudaMemcpyAsync"]
        self._queue.argtypes = self._copy.argtypes = types
        self._streams = (ctypes.c_void_p(), ctypes.c_void_p())
        self.begin()
        for stream in self._streams:
            self._check(self._runtime.cudaStreamCreateWithFlags(ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING)))

    def begin(self) -> None:
        """To be called before copies are queued, if other devices were used since."""
        self._check(self._runtime.cudaSetDevice(ctypes.c_int(self._device)))

    def to_host(self, target: int, source: int, size: int, *, pinned: bool) -> None:
        """Queues a copy from the device.

        Args:
            target: The address in host memory.
            source: The address on the device.
            size: The number of bytes.
            pinned: Whether the host memory is pinned. If not, this may wait for the copy.

        Raises:
            CopyError: CUDA refused it.
        """
        self._check((self._queue if pinned else self._copy)(target, source, size, _TO_HOST, self._streams[0]))

    def to_device(self, target: int, source: int, size: int, *, pinned: bool) -> None:
        """Queues a copy to the device; see `to_host`."""
        self._check((self._queue if pinned else self._copy)(target, source, size, _TO_DEVICE, self._streams[1]))

    def wait(self) -> None:
        """Waits for all copies.

        Raises:
            CopyError: One failed, or an earlier operation of the process on the device.
        """
        for stream in self._streams:
            self._check(self._runtime.cudaStreamSynchronize(stream))

    def _check(self, code: int) -> None:
        if code:
            raise CopyError(error_text(code))


def can_copy() -> bool:
    """Whether arrays of GPUs can be copied in this way."""
    return runtime() is not None


@functools.cache
def copies_of(device: int) -> Any:
    """Returns the copies of a GPU. In the thread that uses CUDA."""
    return CudaCopies(device)
