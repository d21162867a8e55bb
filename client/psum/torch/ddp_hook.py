"""A communication hook for DistributedDataParallel: psum sums the gradients, and NCCL or Gloo does the rest."""

import collections
import weakref
from typing import Any, Protocol

import torch
import torch.distributed as dist
from psum.client import InvalidError, Store
from psum.torch import job, priority, staging
from psum.torch.outcome import torch_future


class Hook(Protocol):
    """What DistributedDataParallel.register_comm_hook takes."""

    def __call__(self, state: object, bucket: Any) -> Any:
        """Starts to average a bucket. Returns a torch.futures.Future of its tensor."""


class BucketKeys:
    """Names the keys of one model's buckets.

    DistributedDataParallel cuts its buckets anew after the first step, and wrappers of the hook may change their type.
    A key keeps its size and type for ever. So each form of a bucket has a key of its own. Forms are numbered in the
    order in which they appear: ranks whose buckets differ use one key in two ways, and get an error that shows both.

    Args:
        prefix: The beginning of all keys.

    Attributes:
        forms: The keys by the bucket's index and form.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.forms: dict[int, dict[tuple[int, object], str]] = {}

    def key(self, index: int, size: int, dtype: object) -> str:
        """The key of a bucket.

        Args:
            index: The bucket's index.
            size: The number of its elements.
            dtype: Their type.
        """
        forms = self.forms.setdefault(index, {})
        if (key := forms.get((size, dtype))) is None:
            form = f", form {len(forms)}" if forms else ""
            key = forms[size, dtype] = f"{self._prefix}, bucket {index}{form}"
        return key


def hook(store: Store | None = None) -> Hook:
    """Makes a communication hook that averages gradients with psum.

        model = DistributedDataParallel(net)
        model.register_comm_hook(None, psum.torch.hook())

    All ranks must make their hooks in the same order. A bucket goes before the others if it holds layers that the next
    forward pass needs earlier. The result equals that of DistributedDataParallel without a hook: each rank divides its
    gradients by the number of ranks, and psum adds them up in rank order. In an elastic job, the mean stays the mean
    when ranks are lost. torch's wrappers fit around it:
    `model.register_comm_hook(None, fp16_compress_wrapper(psum.torch.hook()))`.

    If a sum fails, `backward()` raises a RuntimeError with the text of psum's error.

    Args:
        store: Where the keys live. None: a new store of this process's job, which `init` joins.

    Raises:
        PsumError: Joining the job failed.
    """
    if store is None:
        store = job.new_store()
    keys = BucketKeys(f"hook {_next_number(store)}")
    _keys.setdefault(store.client, []).append(keys)
    size = store.client.num_workers

    # register_comm_hook compares the annotations with these.
    def psum_hook(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        tensor = bucket.buffer()
        if size > 1:
            # Before the sum, as DistributedDataParallel does: a sum of 16-bit gradients could overflow.
            tensor.div_(size)
        future, done = torch_future(tensor)
        index = bucket.index()
        key = keys.key(index, tensor.numel(), tensor.dtype)
        staging.push_pull(store, key, tensor, priority=priority.of_ready(index), movable=True, done=done, gradient=True)
        return future

    return psum_hook


_keys: "weakref.WeakKeyDictionary[Any, list[BucketKeys]]" = weakref.WeakKeyDictionary()
"""The keys of each client's hooks, in the order in which the hooks were made."""

_hooks: "weakref.WeakKeyDictionary[Any, collections.Counter[int]]" = weakref.WeakKeyDictionary()
"""How many hooks each store has, by client and number of the store: several models may share a store."""


def _next_number(store: Store) -> int:
    counts = _hooks.setdefault(store.client, collections.Counter())
    counts[store.number] += 1
    return counts[store.number] - 1


def forms(client: Any) -> list[dict[int, dict[tuple[int, object], str]]]:
    """The forms of buckets that the hooks of a client have had, in the order in which the hooks were made."""
    return [keys.forms for keys in _keys.get(client, [])]


def take_forms(client: Any, taken: list[dict[int, dict[tuple[int, object], str]]]) -> None:
    """Lets the hooks of a client go on with the forms of buckets that those of another process have had.

    Raises:
        InvalidError: This process has made another number of hooks.
    """
    own = _keys.get(client, [])
    if len(own) != len(taken):
        raise InvalidError(
            f"this process has made {len(own)} hooks (psum.torch.hook), and the job that it joins {len(taken)}"
        )
    for keys, its in zip(own, taken, strict=True):
        keys.forms = its
