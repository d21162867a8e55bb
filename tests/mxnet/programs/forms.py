"""Sums arrays of all element types in all forms, in place and through stages, and prints which are not exact.

With the argument "gpu", those of all GPUs, of which none can be used in place.
"""

import itertools
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

import psum.mxnet
from psum.client import ElementType, shared_client
from psum.mxnet.arrays.memory import usable_in_place
from psum.mxnet.compat import mx

#: Messages carry the elements of the smaller one, the plane those of the larger one.
SIZES = 7, 100_003
STEPS = 4

checked = 0
gpu = sys.argv[1:] == ["gpu"]
devices = [mx.gpu(number) for number in range(mx.context.num_gpus())] if gpu else [mx.cpu()]
#: False with stand-ins for GPUs, which copy and do not compute.
computes = not gpu or (mx.nd.array([1.0], ctx=devices[0]) + 1).asnumpy() == 2


def values(rank: int, shift: int = 0) -> np.ndarray[Any, Any]:
    """Returns a rank's values: small numbers, whose sums are exact in every type."""
    return np.arange(size) % 11 + rank + shift


def array(content: Any, number: int = 0) -> Any:
    """Makes an array on one of the devices."""
    # As float32 first: NumPy does not have bfloat16.
    there = mx.nd.array(content, dtype="float32").astype(dtype)
    return there.copyto(devices[number % len(devices)]) if gpu else there


def empty(number: int = 0) -> Any:
    return array(np.full(size, 77), number)


def check(form: str, got: Any, expected: Any) -> None:
    global checked
    checked += 1
    if not np.array_equal(got.copyto(mx.cpu()).astype("float32").asnumpy(), expected):
        print(
            f"{form} of {size} {element_type.label}, {'in place' if in_place and not gpu else 'staged'}: wrong",
            flush=True,
        )


def pushpulls() -> Iterator[tuple[str, Any, Any]]:
    """Yields the forms of a push-pull: a name, the array to read, and the expected values."""
    total = sum(values(r) for r in ranks)
    doubled = total + sum(values(r, 1) for r in ranks)

    given = array(values(rank))
    store.pushpull(f"{tag} in place", given)
    yield "in place", given, total

    given, out = array(values(rank)), empty()
    store.pushpull(f"{tag} out", given, out)
    yield "out", out, total
    yield "value beside an out", given, values(rank)

    outs = [empty(number) for number in range(3)] + [mx.nd.zeros(size, dtype="float32").astype(dtype)]
    store.pushpull(f"{tag} outs", given, outs)
    yield from (("outs", out, total) for out in outs)

    if adds:
        given_list = [array(values(rank)), array(values(rank, 1), 1)]
        store.pushpull(f"{tag} list out", given_list, out)
        yield "list to an out", out, doubled
        store.pushpull(f"{tag} list", given_list)
        yield from (("list", item, doubled) for item in given_list)

    parts = array(np.concatenate([values(rank)] * 3))
    store.pushpull(f"{tag} slice", parts[size : 2 * size])
    yield "slice", parts, np.concatenate([values(rank), total, values(rank)])
    store.pushpull(f"{tag} view", parts[size : 2 * size].reshape((size, 1)))
    yield "view", parts, np.concatenate([values(rank), total * len(ranks), values(rank)])

    # Without a wait between the steps, and without references to the arrays.
    steps = [empty() for _ in range(STEPS)]
    for step, out in enumerate(steps):
        store.pushpull(f"{tag} ahead", array(values(rank, step)), out)
    yield from (("ahead", out, sum(values(r, step) for r in ranks)) for step, out in enumerate(steps))


def broadcasts() -> Iterator[tuple[str, Any, Any]]:
    given = array(values(rank))
    store.broadcast(f"{tag} b", given)
    yield "broadcast", given, values(0)
    given, outs = array(values(rank)), [empty() for _ in range(2)]
    store.broadcast(f"{tag} bs", given, outs)
    yield from (("broadcast to outs", out, values(0)) for out in outs)
    yield "value of a broadcast", given, values(rank)


def without_dimensions() -> Iterator[tuple[str, Any, Any]]:
    for shape, contribution in (((), 2.0 + rank), ((0, 3), 0.0)):
        if shape == () and element_type is ElementType.BFLOAT16:
            # oneDNN, with which MXNet makes and reads bfloat16, has no such arrays.
            continue
        given, out = array(np.full(shape, contribution)), array(np.zeros(shape))
        store.pushpull(f"{tag} {shape}", [given, given] if adds else given, out)
        yield str(shape), out, np.full(shape, (2 if adds else 1) * sum(2.0 + r for r in ranks))


ranks: range
assert {*shared_client().planes} == {os.environ["PSUM_PLANE"]}
for in_place in (True,) if gpu else (True, False):
    store = psum.mxnet.BytePS(in_place=usable_in_place if in_place else lambda context: False)
    rank, ranks = store.rank, range(store.num_workers)
    for element_type, size in itertools.product(ElementType, SIZES):
        dtype = np.dtype([("bfloat16", np.uint16)]) if element_type is ElementType.BFLOAT16 else element_type.label
        tag = f"{element_type.label} {size}"
        # The host adds up the types that MXNet cannot add on a GPU.
        adds = computes or element_type in (ElementType.INT8, ElementType.BFLOAT16)
        for form in itertools.chain(pushpulls(), broadcasts()):
            check(*form)
        with mx.util.np_shape(True):
            for form in without_dimensions():
                check(*form)
print(f"{checked} checked")
