"""Arrays in memory that aggregators on the host read from, so that what is pushed from them is not copied."""

import logging
import math
import operator
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, SupportsIndex

import numpy as np
import numpy.typing as npt

from psum.client.core.buffers import Memory
from psum.client.core.ticket import Done, Parts, tell_counts
from psum.client.mappings import address_of
from psum.client.memory import ClientMemory
from psum.planes import Block
from psum.wire import LARGE_PAYLOAD_BYTES, ElementType
from psum.wire.errors import PsumError

_log = logging.getLogger(__name__)

#: Smaller payloads travel in messages, so they are not shared.
LEAST_BYTES: Final = LARGE_PAYLOAD_BYTES

#: The shape of an array; an integer is the size of its only dimension.
Shape = SupportsIndex | Sequence[SupportsIndex]


class SharedBlock:
    """The memory of one array. `numpy.asarray(block)` is an array of its bytes that keeps it.

    The memory is freed when the block ends, so when no array lies in it any more.

    Attributes:
        address: Its address.
        size: Its size in bytes.
        offset: Its offset in the client's staging memory.
        owner: The arrays of its client.
        finalizer: Frees it.
        is_shared: Whether aggregators read it. If not, they read what it held before, and nobody else will get it.
    """

    __slots__ = ("__weakref__", "_view", "address", "finalizer", "is_shared", "offset", "owner", "size")

    def __init__(self, owner: "SharedArrays", block: Block) -> None:
        self.owner = owner
        self._view = block.view
        self.offset = block.offset
        self.address = address_of(block.view)
        self.size = len(block.view)
        self.is_shared = True
        self.finalizer: Any = None

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """NumPy's protocol for memory of others."""
        return {"version": 3, "typestr": "|u1", "shape": (self.size,), "data": (self.address, False)}

    def kept_until(self, done: Done) -> Done:
        """Returns the callback for an operation that pushes from the block. It keeps the block until the end.

        If the operation fails, it withdraws the block before the program hears of the failure.

        Args:
            done: What to call then.
        """
        return _Keeping(self, done)

    def withdraw(self) -> None:
        """Separates the block from the staging memory, after an operation on it has failed.

        An aggregator may still sum for other ranks what the staging memory holds. So that memory stays as it is, and is
        not used again before the client is closed. All arrays in the block keep their addresses and contents.
        """
        if self.is_shared:
            self.is_shared = False
            self.finalizer.detach()
            self.owner.separate(self.offset, self.size)


class _Keeping:
    """The callback of an operation that pushes from a block. See SharedBlock.kept_until."""

    __slots__ = ("_block", "_done")

    def __init__(self, block: SharedBlock, done: Done) -> None:
        self._block = block
        self._done = done

    def __call__(self, error: PsumError | None) -> None:
        if error is not None:
            self._block.withdraw()
        self._done(error)

    def take_counts(self, parts: Parts) -> None:
        """See Ticket.note_count."""
        tell_counts(self._done, parts)


class Place(NamedTuple):
    """Where a value lies that aggregators can read.

    Attributes:
        block: The memory that it is a part of.
        offset: Its offset in the client's staging memory.
    """

    block: SharedBlock
    offset: int


class SharedArrays:
    """The arrays of one client in its staging memory. From any thread.

    Args:
        memory: The client's memory.
        shares: Says whether an aggregator reads this client's memory now.
    """

    def __init__(self, memory: ClientMemory, shares: Callable[[], bool]) -> None:
        self._memory = memory
        # A weak reference: arrays may outlive their client.
        self._shares = weakref.WeakMethod(shares)
        self._pid = os.getpid()
        self._closed = False
        self._sizes: dict[int, int] = {}
        """The sizes of the blocks in use that were not separated, by offset."""
        _all.add(self)

    @property
    def count(self) -> int:
        """How many arrays lie in the staging memory."""
        return len(self._sizes)

    def empty(self, shape: Shape, dtype: object) -> npt.NDArray[Any]:
        """See Client.empty."""
        kind = _dtype(dtype)
        sizes = tuple(map(operator.index, shape if isinstance(shape, Sequence) else (shape,)))
        block = self.block(math.prod(sizes) * kind.itemsize) if min(sizes, default=0) > 0 else None
        return np.empty(sizes, kind) if block is None else np.asarray(block).view(kind).reshape(sizes)

    def zeros(self, shape: Shape, dtype: object) -> npt.NDArray[Any]:
        """See Client.zeros."""
        array = self.empty(shape, dtype)
        array.fill(0)
        return array

    def block(self, size: int) -> SharedBlock | None:
        """Allocates memory.

        Args:
            size: The size in bytes.

        Returns:
            None if no aggregator reads memory of this client, there is not enough shared memory, or it is so small that
            it would travel in messages anyway.
        """
        if size < LEAST_BYTES or self._closed or os.getpid() != self._pid:
            return None
        shares = self._shares()
        if shares is None or not shares():
            return None
        block = self._memory.allocate(size)
        if block is None:
            return None
        self._sizes[block.offset] = size
        shared = SharedBlock(self, block)
        finalizer = weakref.finalize(shared, _free, self._memory, self._sizes, os.getpid(), block.offset, size)
        finalizer.atexit = False
        shared.finalizer = finalizer
        return shared

    def place_of(self, memory: Memory) -> Place | None:
        """Returns where a value lies in the staging memory; None if aggregators cannot read it there.

        Args:
            memory: The value, contiguous: an array that `empty` or `zeros` made, or a part or a view of one.
        """
        owner: Any = memory
        while isinstance(owner, np.ndarray | memoryview):
            owner = owner.obj if isinstance(owner, memoryview) else owner.base
        if type(owner) is not SharedBlock or owner.owner is not self or not owner.is_shared or self._closed:
            return None
        array = np.frombuffer(memory, np.uint8) if isinstance(memory, memoryview) else memory
        return Place(owner, owner.offset + array.__array_interface__["data"][0] - owner.address)

    def separate(self, offset: int, size: int) -> None:
        """Separates a block from the staging memory, for this process."""
        self._sizes.pop(offset, None)
        if not self._memory.separate(offset, size):
            _log.warning(
                "an array of %d bytes cannot be separated from the memory that aggregators and other processes read;"
                " do not change it while other ranks wait for the sum",
                size,
            )

    def close(self) -> None:
        """Makes the memory of all arrays this process's own. To be called before the client's memory is closed.

        An aggregator may still sum what the staging memory holds, for ranks that are not closed.
        """
        self._closed = True
        self.separate_all()

    def separate_all(self) -> None:
        """Separates all blocks that are in use. A process that was forked does so too, for itself."""
        for offset, size in list(self._sizes.items()):
            self.separate(offset, size)


def _dtype(dtype: object) -> "np.dtype[Any]":
    """The dtype of an array for elements that psum can sum. That of another library's bfloat16 is kept.

    Raises:
        TypeError: psum cannot sum them.
    """
    kind = ElementType.of(dtype)
    return kind.numpy if isinstance(dtype, str | ElementType) else np.dtype(dtype)  # type: ignore[call-overload]


def _free(memory: ClientMemory, sizes: dict[int, int], pid: int, offset: int, size: int) -> None:
    # A process that was forked has the memory of the process that made it.
    if os.getpid() == pid:
        sizes.pop(offset, None)
        memory.free(offset, size)


_all: "Final[weakref.WeakSet[SharedArrays]]" = weakref.WeakSet()


def _keep_from_parent() -> None:
    """After a fork, in the new process: what it writes to inherited arrays must not change those of its parent."""
    for arrays in list(_all):
        arrays.separate_all()


os.register_at_fork(after_in_child=_keep_from_parent)
