"""The memory of stages: it has an address at once, and is shared and pinned later."""

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

#: Prepares and frees memory: its thread is the one that uses CUDA.
worker: Final = Worker("psum-stages")


class HostMemory:
    """Memory for arrays, all zero. It has its address at once, and gets pages when it is prepared or written to.

    Args:
        size: The size in bytes, at least 1.

    Attributes:
        address: The address.
        offset: The offset in the memory that aggregators on this host read from. None before it was prepared, and if it
            does not lie there.
    """

    def __init__(self, size: int) -> None:
        self.offset: int | None = None
        self._size = size
        # A shared mapping, although nobody shares it: after a fork, copy-on-write would replace the pinned pages.
        self._map = mmap.mmap(-1, size)
        self.address = _address_of(self._map)

    def prepare(self, allocate: Callable[[int], Block | None], device: int | None) -> None:
        """Shares the memory with aggregators and pins it, as far as possible. The worker calls it before the first use.

        Args:
            allocate: Allocates memory that aggregators on this host read from; returns None if there is no more.
            device: The number of a GPU that this process uses. None: the memory is not pinned.
        """
        block = allocate(self._size)
        if block is not None:
            if _map_again(_address_of(block.view), self._size, self.address):
                self.offset = block.offset
            else:
                _log.debug("shared memory at %d cannot be mapped again; its content is copied", block.offset)
        if device is not None and cuda.pin(self.address, self._size, device):
            # Keeps the mapping until it is unpinned, so that the system does not reuse its addresses before.
            weakref.finalize(self, _let_go, self._map, self.address, device).atexit = False


def _address_of(memory: mmap.mmap | memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _map_again(address: int, size: int, target: int) -> bool:
    """Maps the pages at an address of a shared mapping at the target address too, replacing what is mapped there."""
    # An old size of 0 makes a second mapping of the same pages, and leaves the first one.
    return bool(_mremap(address, 0, size, _MAYMOVE | _FIXED, target) != _FAILED)


def _let_go(memory: mmap.mmap, address: int, device: int) -> None:
    def unpin(_: mmap.mmap = memory) -> None:
        cuda.unpin(address, device)

    worker.do(unpin)
