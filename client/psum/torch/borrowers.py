"""Which collectives may have their results lent: those of DistributedDataParallel that only read them.

DistributedDataParallel's code in C++ sums its buckets during the backward pass, and reads each sum from the future's
value. By default it copies the sums from there to the gradients. Whether the sums are in the bucket's memory does not
matter to it. With gradient_as_bucket_view=True it copies them to the bucket if they are not there. That would cost as
much as the copy that lending saves, and at a worse time: after the backward pass instead of beside it.
"""

import threading
import weakref
from typing import Any, Final

import torch
from psum.client import Loan
from psum.torch.tensors import byte_count, is_plain
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

#: Smaller results are copied faster than they are lent.
LEAST_BYTES: Final = 1 << 20

_wrappers: "weakref.WeakSet[Any]" = weakref.WeakSet()
"""All modules of DistributedDataParallel in this process."""
_noting: list[Any] = []


class Borrowed:
    """The last sum that was lent for each bucket. From any thread.

    DistributedDataParallel keeps a sum longer than it needs it: until it has that of the next pass. But it has copied
    the sum to the gradients when it sums the same bucket again.
    """

    def __init__(self) -> None:
        # Reentrant: a signal's handler may sum a tensor anywhere.
        self._lock = threading.RLock()
        self._loans: weakref.WeakKeyDictionary[Any, weakref.ref[Loan]] = weakref.WeakKeyDictionary()
        """By the bucket's storage."""

    def give_up(self, bucket: torch.Tensor) -> None:
        """Gives up the last sum of a bucket, which is about to be summed again."""
        with self._lock:
            last = self._loans.pop(bucket.untyped_storage(), None)
        if last is not None and (loan := last()) is not None:
            loan.give_up()

    def note(self, bucket: torch.Tensor, loan: Loan) -> None:
        """Notes that a bucket's sum is lent."""
        storage = bucket.untyped_storage()
        # Otherwise it is one of several tensors, and a sum of another does not tell whether its own is still needed.
        if byte_count(bucket) == storage.nbytes():
            with self._lock:
                self._loans[storage] = weakref.ref(loan)


def install() -> None:
    """Notes each DistributedDataParallel that is made from now on. A second call changes nothing."""
    if not _noting:
        _noting.append(register_module_module_registration_hook(_note))


def may_borrow(group: Any, tensor: torch.Tensor) -> bool:
    """Whether the sum of a tensor may be lent, if DistributedDataParallel asks for it; see bucket_calls.

    Args:
        group: The process group.
        tensor: What is summed.
    """
    return (
        tensor.device.type == "cpu"
        and tensor.dtype.is_floating_point
        and byte_count(tensor) >= LEAST_BYTES
        and is_plain(tensor)
        and _reads_only(group)
    )


def _reads_only(group: Any) -> bool:
    """Whether the group's DistributedDataParallel modules only read sums."""
    wrappers = [wrapper for wrapper in _wrappers if getattr(wrapper, "process_group", None) is group]
    return bool(wrappers) and not any(wrapper.gradient_as_bucket_view for wrapper in wrappers)


def _note(module: Any, name: str, submodule: Any) -> None:
    if isinstance(module, DistributedDataParallel):
        _wrappers.add(module)
