"""The memory of stages: it has an address at once, and is shared and pinned later."""

import logging
import mmap
import weakref
from collections.abc import Callable
from typing import Final

from psum.client import Block
from psum.client.mappings import address_of, map_again
from psum.mxnet.staging import cuda
from psum.mxnet.staging.background_thread import Worker

_log = logging.getLogger(__name__)

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
        pinned: Whether it is pinned. False before it was prepared.
    """

    def __init__(self, size: int) -> None:
        self.offset: int | None = None
        self.pinned = False
        self._size = size
        # A shared mapping, although nobody shares it: after a fork, copy-on-write would replace the pinned pages.
        self._map = mmap.mmap(-1, size)
        self.address = address_of(self._map)

    def prepare(self, allocate: Callable[[int], Block | None], device: int | None) -> None:
        """Shares the memory with aggregators and pins it, as far as possible. The worker calls it before the first use.

        Args:
            allocate: Allocates memory that aggregators on this host read from; returns None if there is no more.
            device: The number of a GPU that this process uses. None: the memory is not pinned.
        """
        block = allocate(self._size)
        if block is not None:
            if map_again(address_of(block.view), self._size, self.address):
                self.offset = block.offset
            else:
                _log.debug("shared memory at %d cannot be mapped again; its content is copied", block.offset)
        if device is not None and cuda.pin(self.address, self._size, device):
            self.pinned = True
            # Keeps the mapping until it is unpinned, so that the system does not reuse its addresses before.
            weakref.finalize(self, _let_go, self._map, self.address, device).atexit = False


def _let_go(memory: mmap.mmap, address: int, device: int) -> None:
    def unpin(_: mmap.mmap = memory) -> None:
        cuda.unpin(address, device)

    worker.do(unpin)
