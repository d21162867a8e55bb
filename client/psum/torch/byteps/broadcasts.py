"""Gives all ranks one rank's parameters, optimizer state, or any object."""

import dataclasses
import pickle
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from psum.client import Store
from psum.torch import job, staging
from psum.torch.outcome import Outcome, wait_for_all
from psum.torch.tensors import check_dense

#: The fewest bytes that a pickled object takes on the wire. Sizes are powers of two from there: each has a key.
_LEAST_BYTES: Final = 1024


def broadcast_parameters(
    params: Mapping[str, Any] | Iterable[tuple[str, Any]], root_rank: int = 0, prefix: str = "Parameter."
) -> None:
    """Gives all ranks one rank's tensors, in place, and waits.

    In an elastic job, rank 0 may be lost before it has sent its own. Then all get those of another rank.

    Args:
        params: A model's state_dict() or named_parameters(). The names must be the same on all ranks.
        root_rank: Whose tensors all ranks get. Rank 0 costs least.
        prefix: The beginning of the keys.

    Raises:
        TypeError: They are no named tensors, or tensors that psum cannot sum.
        ValueError: There is no such rank, or a name had another shape or type before.
        PsumError: A broadcast failed.
    """
    store = _store(root_rank)
    named = list(params.items() if isinstance(params, Mapping) else params)
    for item in named:
        if not (isinstance(item, tuple) and len(item) == 2):
            raise TypeError(
                "params must be a state_dict() or named_parameters() of a model: pairs of a name and a tensor; got"
                f" {type(item).__name__}"
            )
        check_dense(item[1], f"parameter {item[0]!r}")
    _broadcast_all(store, [(f"{prefix}{name}", tensor) for name, tensor in named], root_rank, stands_in=True)


def broadcast_optimizer_state(optimizer: Any, root_rank: int = 0, prefix: str = "Parameter.") -> None:
    """Gives all ranks one rank's optimizer state, such as momentum, and its options, such as the learning rate.

    Other ranks need no state yet. All ranks' optimizers must have the same parameters in the same order.

    Args:
        optimizer: A torch.optim.Optimizer, or what DistributedOptimizer made of it.
        root_rank: Whose state all ranks get.
        prefix: The beginning of the keys.

    Raises:
        TypeError: It is no optimizer.
        ValueError: There is no such rank, or this rank's optimizer has other parameters.
        PsumError: A broadcast failed.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}; expected a torch.optim.Optimizer")
    store = _store(root_rank)
    is_root = store.client.rank == root_rank
    tensors: list[Any] = []
    state = None
    if is_root:
        state = _without_tensors(optimizer.state_dict(), tensors)
    state, forms = broadcast_object((state, [(t.shape, t.dtype) for t in tensors]), root_rank)
    if not is_root:
        tensors = [torch.empty(shape, dtype=dtype) for shape, dtype in forms]
    # The same position may hold another tensor next time, and a key keeps its shape for ever.
    named = [(f"{prefix}optimizer state {i} of {tuple(t.shape)} {t.dtype}", t) for i, t in enumerate(tensors)]
    _broadcast_all(store, named, root_rank)
    if not is_root:
        optimizer.load_state_dict(_with_tensors(state, tensors))


def broadcast_object(obj: Any = None, root_rank: int = 0, name: str | None = None) -> Any:
    """Gives all ranks one rank's object, and waits. The object is pickled: a job's ranks trust each other.

    Args:
        obj: Anything that pickle takes. Not used on other ranks than root_rank.
        root_rank: Whose object all ranks get.
        name: The operation's name. All ranks must call this in the same order, with the same names.

    Returns:
        On root_rank the object itself, on the others a copy.

    Raises:
        ValueError: There is no such rank.
        PsumError: The broadcast failed.
    """
    store = _store(root_rank)
    is_root = store.client.rank == root_rank
    key = "object" if name is None else f"object {name}"
    data = pickle.dumps(obj) if is_root else b""
    length = torch.tensor(len(data), dtype=torch.int64)
    _broadcast_all(store, [(f"{key}, length", length)], root_rank)
    # Sizes are rounded up: a key keeps its size for ever, and each size would need one.
    size = max(_LEAST_BYTES, 1 << (int(length) - 1).bit_length())
    memory = torch.zeros(size, dtype=torch.uint8)
    memory[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else 0
    _broadcast_all(store, [(f"{key}, up to {size} bytes", memory)], root_rank)
    return obj if is_root else pickle.loads(memory[: int(length)].numpy().tobytes())


@dataclasses.dataclass(frozen=True)
class _Place:
    """Stands for a tensor in a state without tensors."""

    index: int


def _without_tensors(value: Any, tensors: list[Any]) -> Any:
    """Returns the same structure with places instead of tensors, which are added to the list."""
    if isinstance(value, torch.Tensor):
        check_dense(value, "a tensor of the optimizer's state")
        tensors.append(value.detach())
        return _Place(len(tensors) - 1)
    if isinstance(value, Mapping):
        return {key: _without_tensors(item, tensors) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without_tensors(item, tensors) for item in value)
    return value


def _with_tensors(value: Any, tensors: list[Any]) -> Any:
    """The inverse of _without_tensors."""
    if isinstance(value, _Place):
        return tensors[value.index]
    if isinstance(value, dict):
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_with_tensors(item, tensors) for item in value)
    return value


def _store(root_rank: int) -> Store:
    store = job.store()
    if isinstance(root_rank, bool) or not isinstance(root_rank, int) or not 0 <= root_rank < job.size():
        raise ValueError(f"root_rank is {root_rank!r}; the job has the ranks 0 to {job.size() - 1}")
    return store


def _broadcast_all(store: Store, named: list[tuple[str, Any]], root_rank: int, *, stands_in: bool = False) -> None:
    outcomes = []
    try:
        for key, tensor in named:
            outcome = Outcome(store, tensor)
            staging.broadcast(store, key, tensor.detach(), root=root_rank, done=outcome, stands_in=stands_in)
            outcomes.append(outcome)
    finally:
        wait_for_all(outcomes)
