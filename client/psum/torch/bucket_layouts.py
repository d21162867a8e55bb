"""The buckets of DistributedDataParallel, in which a process that joins an elastic job must sum as the others do.

After its first backward pass, DistributedDataParallel makes its buckets anew, in the order in which gradients became
ready on rank 0. Rank 0 broadcasts that order and the sizes of the buckets. A process that joins later makes no such
pass before its first step. So it gets what rank 0 has broadcast from another rank, and makes its buckets of that.
"""

import collections
import contextlib
import weakref
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Final

import torch

#: In which method DistributedDataParallel makes its buckets anew.
_METHOD: Final = "_pre_forward"


class BucketLayouts:
    """What rank 0 has broadcast for the buckets of each model of one group."""

    def __init__(self) -> None:
        self._broadcasts: weakref.WeakKeyDictionary[Any, list[torch.Tensor]] = weakref.WeakKeyDictionary()
        self._remaking: Any = None
        """The model whose buckets `remake` makes."""
        self._given: collections.deque[torch.Tensor] | None = None
        """What its broadcasts are to give; None: what rank 0 gives."""

    def remake(self, model: Any, given: Sequence[torch.Tensor] | None = None) -> None:
        """Lets a model make its buckets anew, if it has not and is about to. All ranks must call this at one point.

        Args:
            model: A DistributedDataParallel.
            given: What rank 0 has broadcast for that on the other ranks. This rank then does it without the others.
        """
        if given is not None:
            # As after a backward pass.
            model.reducer._push_all_rebuilt_params()
        with self._remaking_buckets_of(model, given):
            if model.reducer._rebuild_buckets():
                model._has_rebuilt_buckets = True

    def of(self, model: Any) -> list[torch.Tensor]:
        """What rank 0 has broadcast for the buckets of a model; nothing if they are still those of its constructor."""
        return self._broadcasts.get(model, [])

    def model_of(self, caller: FrameType | None) -> Any:
        """The model for whose buckets a group's method is called; None if it is called for anything else."""
        if self._remaking is not None:
            return self._remaking
        return caller.f_locals.get("self") if caller is not None and caller.f_code.co_name == _METHOD else None

    def given(self, tensor: torch.Tensor) -> bool:
        """Writes to a tensor what its broadcast is to give. Returns False if rank 0 gives it."""
        if self._given is None:
            return False
        tensor.copy_(self._given.popleft())
        return True

    def note(self, model: Any, tensor: torch.Tensor) -> None:
        """Notes what a broadcast has given for the buckets of a model."""
        self._broadcasts.setdefault(model, []).append(tensor.detach().cpu().clone())

    @contextlib.contextmanager
    def _remaking_buckets_of(self, model: Any, given: Sequence[torch.Tensor] | None) -> Iterator[None]:
        self._remaking, self._given = model, None if given is None else collections.deque(given)
        try:
            yield
        finally:
            self._remaking = self._given = None
