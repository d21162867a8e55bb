"""Checks that the parameters are the same on all ranks."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from psum.client import ComparedTensor, Comparison, Operation, digest_of, shared_client
from psum.mxnet.compat import mx
from psum.mxnet.kvstore import BytePS

_EXPECTED = "a network, a Trainer, a Module, or a dictionary or list of Parameters or NDArrays"


def check_in_step(what: Any) -> None:
    """Checks that parameters are the same on all ranks, bit for bit. All ranks must call it, at the same step.

    The ranks exchange digests of 8 bytes, not the parameters. A gigabyte of parameters takes about two seconds of this
    process's time. Parameters that have no gradient by design, such as the running means of BatchNorm, are left out:
    they depend on each rank's own data. Before the first step of a Trainer the ranks need not be in step: that step
    gives all of them rank 0's parameters.

    Args:
        what: A network, a Trainer, a Module, or a dictionary or list of Parameters or NDArrays.

    Raises:
        OutOfStepError: They differ. The error names the first that differ, and the ranks. All ranks get it.
        TypeError: `what` is something else.
        PsumError: The exchange with the other ranks failed.
        MXNetError: A parameter could not be computed. The other ranks get an AbortedError.
    """
    # First: a TypeError must not leave the other ranks waiting.
    named = list(_arrays(what))
    store = getattr(what, "_kvstore", None)
    if isinstance(store, BytePS):
        _compare(store.comparison(), named)
    else:
        _compare(Comparison(shared_client(), "check_in_step"), named)


def updated(owner: Any) -> None:
    """Checks the parameters of a Trainer or Module that has updated them, if a check is due."""
    store = owner._kvstore
    if isinstance(store, BytePS) and store.is_check_due():
        check_in_step(owner)


def _compare(comparison: Comparison, named: Iterable[tuple[str, Any]]) -> None:
    try:
        tensors = [_tensor(name, arrays) for name, arrays in named]
    except BaseException as error:
        comparison.abort(f"its parameters could not be read: {type(error).__name__}: {error}")
        raise
    comparison.compare(tensors)


def _arrays(what: Any) -> Iterator[tuple[str, list[Any] | None]]:
    """Yields names with the copies on each device; None if the parameter is not initialized yet."""
    if isinstance(what, mx.gluon.Trainer):
        names: Mapping[Any, str] = (
            what._kvstore.labels.get(Operation.SUM, {}) if isinstance(what._kvstore, BytePS) else {}
        )
        for number, parameter in enumerate(what._params):
            yield from _item(names.get(number, parameter.name), parameter)
    elif isinstance(what, mx.gluon.Block):
        yield from _arrays(what.collect_params())
    elif getattr(what, "_exec_group", None) is not None:
        group = what._exec_group
        yield from zip(group.param_names, group.param_arrays, strict=True)
    elif hasattr(what, "get_params"):
        yield from ((name, [array]) for name, array in sorted(what.get_params()[0].items()))
    elif hasattr(what, "items"):
        for name, item in what.items():
            yield from _item(str(name), item)
    elif isinstance(what, list | tuple):
        for number, item in enumerate(what):
            yield from _item(getattr(item, "name", str(number)), item)
    else:
        raise TypeError(f"check_in_step of a {type(what).__name__}; expected {_EXPECTED}")


def _item(name: str, item: Any) -> Iterator[tuple[str, list[Any] | None]]:
    if isinstance(item, mx.nd.NDArray):
        yield name, [item]
    elif not isinstance(item, mx.gluon.Parameter):
        raise TypeError(f"check_in_step of a {type(item).__name__}, {name}; expected {_EXPECTED}")
    elif item._differentiable:
        yield name, item._data


def _tensor(name: str, arrays: list[Any] | None) -> ComparedTensor:
    if arrays is None:
        return ComparedTensor(name, "not initialized yet", b"")
    digests = []
    for array in arrays:
        value = np.ascontiguousarray(array.asnumpy())
        digests.append(digest_of(value.reshape(-1).view(np.uint8)))
    form = f"{np.dtype(arrays[0].dtype).name} {arrays[0].shape}"
    differing = [str(array.context) for array, digest in zip(arrays, digests, strict=True) if digest != digests[0]]
    flaw = f"{', '.join(differing)} against {arrays[0].context}" if differing else ""
    return ComparedTensor(name, form, digest_of(*digests) if differing else digests[0], flaw)
