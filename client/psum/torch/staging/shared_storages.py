"""Moves the memory of tensors that a training sums again and again to where aggregators on this host read from.

DistributedDataParallel makes its buckets itself, and keeps them for the whole training. psum cannot make them in shared
memory, so it puts shared memory in their place: PyTorch can move a storage to a mapping of its own, and all tensors of
the storage follow (torch.Tensor.share_memory_). psum then maps a block of its staging memory at the address of that
mapping. From then on, a contribution lies where aggregators read it, without a copy.
"""

import logging
import os
import threading
import weakref
from typing import Any, Final, NamedTuple

import numpy.typing as npt

import torch
from psum.client import Block, Client
from psum.client.mappings import address_of, make_private, map_again
from psum.client.per_client import PerClient
from psum.torch.tensors import byte_count, flat_array, unmarked_array

_log = logging.getLogger(__name__)

#: Memory is moved when it is summed this often: DistributedDataParallel makes other buckets after the first step.
_USES: Final = 3

#: Smaller tensors are copied in less time than their messages take.
_LEAST_BYTES: Final = 1 << 20


class _Place(NamedTuple):
    """Where a storage was moved to.

    Attributes:
        address: Its address.
        size: Its size in bytes.
        offset: Its offset in the staging memory.
        finalizer: Frees the block of staging memory when the storage ends.
    """

    address: int
    size: int
    offset: int
    finalizer: Any


class _Use:
    """What is known of one storage.

    Attributes:
        count: How often it was summed.
        place: Where it was moved to; None if it was not.
    """

    __slots__ = ("count", "place")

    def __init__(self) -> None:
        self.count = 0
        self.place: _Place | None = None


class SharedStorages:
    """The storages of one client that were moved to its staging memory. From any thread.

    A storage that was moved stays so as long as it exists, also after the client was closed: the memory is PyTorch's.
    The block of staging memory is used for another storage only after that.

    Args:
        client: The client.
    """

    def __init__(self, client: Client) -> None:
        # A weak reference: this lives as long as the client, and must not keep it alive.
        self._client = weakref.ref(client)
        self._uses: weakref.WeakKeyDictionary[Any, _Use] = weakref.WeakKeyDictionary()
        # Reentrant: a signal's handler may sum a tensor anywhere.
        self._lock = threading.RLock()
        self._told = False

    @classmethod
    def of(cls, client: Client) -> "SharedStorages":
        """Returns those of a client."""
        return _shared.of(client)

    def memory_of(self, tensor: torch.Tensor) -> tuple[npt.NDArray[Any], int | None]:
        """Counts one use of a tensor, and moves its memory if it was used often enough.

        Memory is not moved if NumPy arrays were made of it (tensor.numpy()), because they would lose it. Addresses that
        were taken from it in other ways (tensor.data_ptr(), DLPack) are invalid when it is moved.

        Args:
            tensor: A plain tensor in host memory. Its owner does not use its storage before the operation is done.

        Returns:
            The tensor's memory as a flat array, and its offset in the client's staging memory: None if it does not lie
            there.
        """
        with self._lock:
            use = self._use_of(tensor)
            if use is not None and use.place is None and use.count <= _USES and _is_movable(tensor):
                use.count += 1
                if use.count < _USES:
                    return unmarked_array(tensor), None
                if use.count == _USES:
                    use.place = self._moved(tensor)
            if use is not None and use.place is not None and tensor.data_ptr() != use.place.address:
                # PyTorch has moved it once more, as its sharing strategy 'file_system' does.
                use.place.finalizer()
                use.place = None
            # From here on, the storage cannot be resized.
            return flat_array(tensor)[0], None if use is None or use.place is None else use.place.offset

    @property
    def nbytes(self) -> int:
        """How many bytes of tensors lie in the staging memory."""
        with self._lock:
            return sum(use.place.size for use in self._uses.values() if use.place is not None)

    def withdraw(self, tensor: torch.Tensor) -> None:
        """Separates a tensor from the staging memory, after an operation on it has failed.

        An aggregator may still sum for other ranks what the staging memory holds. So that memory stays as it is, and is
        never used again. The tensor keeps its address and its content.
        """
        with self._lock:
            use = self._use_of(tensor)
            if use is None or use.place is None:
                return
            place, use.place = use.place, None
            place.finalizer.detach()
            if not make_private(place.address, place.size):
                _log.warning(
                    "a sum has failed, and there is not enough memory to separate its tensor of %d bytes from the"
                    " memory that aggregators read; do not change the tensor while other ranks wait for the sum",
                    place.size,
                )

    def _use_of(self, tensor: torch.Tensor) -> _Use | None:
        """What is known of a tensor's storage; None if it is too small, or if the tensor has not all of it."""
        size = byte_count(tensor)
        storage = tensor.untyped_storage()
        if size < _LEAST_BYTES or size != storage.nbytes():
            return None
        use = self._uses.get(storage)
        if use is None:
            use = self._uses[storage] = _Use()
        return use

    def _moved(self, tensor: torch.Tensor) -> _Place | None:
        """Moves a storage to the staging memory. Returns None if that is not possible; its content stays the same."""
        client = self._client()
        if client is None or not client.settings.torch_share_buffers or "shm" not in client.planes:
            return None
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        block = client.allocate(size)
        if block is None:
            return None
        try:
            # PyTorch writes to a file in /dev/shm before psum replaces it.
            with client.room(size) as reason:
                reason = reason or self._put_at(block, tensor, storage)
        except (AttributeError, OSError, RuntimeError) as error:
            reason = str(error)
        if reason is not None:
            client.free(block.offset, size)
            _log.debug("a tensor of %d bytes is copied to shared memory in each step: %s", size, reason)
            return None
        finalizer = weakref.finalize(storage, _free, self._client, block.offset, size)
        finalizer.atexit = False
        if not self._told:
            self._told = True
            _log.info(
                "gradients lie in memory that aggregators on this host read from, which saves a copy"
                " (PSUM_TORCH_SHARE_BUFFERS=0 turns it off)"
            )
        return _Place(storage.data_ptr(), size, block.offset, finalizer)

    @staticmethod
    def _put_at(block: Block, tensor: torch.Tensor, storage: Any) -> str | None:
        """Puts a block in place of a storage's memory. Returns why that was not possible, None if it was."""
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Moves it to a mapping of PyTorch's, which ends with the storage.
            descriptor, _ = storage._share_fd_cpu_()
            torch.frombuffer(block.view, dtype=tensor.dtype, count=tensor.numel()).copy_(tensor.detach().view(-1))
            if not map_again(address_of(block.view), storage.nbytes(), storage.data_ptr()):
                return "it cannot be mapped again"
            # Gives PyTorch's file back. Who sends the tensor to another process (torch.multiprocessing) gets an error
            # there instead of a file with other content.
            os.dup2(nothing, descriptor, inheritable=False)
        finally:
            os.close(nothing)
        return None


def _is_movable(tensor: torch.Tensor) -> bool:
    """Whether nobody else knows where the tensor's memory lies: a file, another library or a NumPy array."""
    storage = tensor.untyped_storage()
    return bool(storage.resizable() and not storage.is_shared())


def _free(client: "weakref.ref[Client]", offset: int, size: int) -> None:
    if (alive := client()) is not None:
        alive.free(offset, size)


_shared: Final = PerClient(SharedStorages)
