"""The memory of stages: at hand at once, and shared and pinned a little later."""

import ctypes
import logging
import mmap
import weakref
from collections.abc import Callable
from typing import Final

from psum.client import Block
from psum.mxnet.staging import cuda
from psum.mxnet.staging.background_thread import Worker

_log = logging.getLogger(__name__)

_MAYMOVE: Final = 1
_FIXED: Final = 2
_FAILED: Final = ctypes.c_void_p(-1).value

_mremap: Final = ctypes.CDLL(None)["mremap"]
_mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_mremap.restype = ctypes.c_void_p

#: In whose thread memory is prepared, and let go: the one that uses CUDA.
worker: Final = Worker("psum-stages")


class HostMemory:
    """Memory for arrays, all zero. It gets its pages when it is prepared or written to, but has its address at once.

    Args:
        size: How many bytes, at least one.

    Attributes:
        address: Where it begins.
        place: Where it lies in the memory that aggregators on this host read from; None where it does not, and before
            it was prepared.
    """

    def __init__(self, size: int) -> None:
        self.place: int | None = None
        self._size = size
        # Shared, though with nobody: pages that are copied on write would be others than the pinned ones after a fork.
        self._map = mmap.mmap(-1, size)
        self.address = _address_of(self._map)

    def prepare(self, allocate: Callable[[int], Block | None], device: int | None) -> None:
        """Shares it with aggregators and pins it, as far as possible. To be called by the worker, before it is used.

        Args:
            allocate: Gives memory that aggregators on this host read from, None where there is no more.
            device: The number of a GPU that this process uses, None for no pinning.
        """
        block = allocate(self._size)
        if block is not None:
            if _map_again(_address_of(block.view), self._size, self.address):
                self.place = block.place
            else:
                _log.debug("shared memory at %d cannot be mapped again; what lies there is copied", block.place)
        if device is not None and cuda.pin(self.address, self._size, device):
            # The system may give its addresses to others only after that.
            weakref.finalize(self, _let_go, self._map, self.address, device).atexit = False


def _address_of(memory: mmap.mmap | memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _map_again(address: int, size: int, target: int) -> bool:
    """Has what lies at an address, in a shared mapping, lie at another one too, in place of what is there."""
    # An old size of 0 asks for a second mapping of the same pages, and leaves the first as it is.
    return bool(_mremap(address, 0, size, _MAYMOVE | _FIXED, target) != _FAILED)


def _let_go(memory: mmap.mmap, address: int, device: int) -> None:
    def unpin(_: mmap.mmap = memory) -> None:
        cuda.unpin(address, device)

    worker.do(unpin)
