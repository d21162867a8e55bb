"""Host memory that GPUs copy from and to directly, and that aggregators on this host read from."""

import ctypes
import mmap
import weakref
from collections.abc import Callable

import torch
from psum.client import Block
from psum.torch.staging.device import Device


class HostMemory:
    """Memory for the value of one tensor at a time. Its content is undefined at first.

    Args:
        size: The size in bytes, at least 1.
        device: The device that copies from and to it.
        allocate: Allocates memory that aggregators on this host read from; returns None if there is none. Then the
            memory is of this process only.

    Attributes:
        size: As given.
        offset: The offset in the memory that aggregators read from, None if it does not lie there.
        pinned: Whether it is pinned.
    """

    def __init__(self, size: int, device: Device, allocate: Callable[[int], Block | None]) -> None:
        block = allocate(size)
        self.size = size
        self.offset = None if block is None else block.offset
        # A shared mapping, although nobody shares it: after a fork, copy-on-write would replace the pinned pages.
        self._memory: mmap.mmap | memoryview = mmap.mmap(-1, size) if block is None else block.view
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.pinned = device.pin(address, size)
        if self.pinned:
            # Keeps the mapping until it is unpinned, so that the system does not reuse its addresses before.
            weakref.finalize(self, _unpin, device, address, self._memory).atexit = False

    def tensor(self, like: torch.Tensor) -> torch.Tensor:
        """Returns a plain tensor in this memory with the shape and dtype of another one, which has elements."""
        flat = torch.frombuffer(self._memory, dtype=like.dtype, count=like.numel())
        return flat.view(like.shape)


def _unpin(device: Device, address: int, memory: mmap.mmap | memoryview) -> None:
    device.unpin(address)
