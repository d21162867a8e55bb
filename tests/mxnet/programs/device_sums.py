"""Sums arrays of a device in place, and prints how many sums were copied from the memory of aggregators.

The device is host memory whose copies are late. What would read a sum too late, or overwrite one, gets a wrong result.
"""

import ctypes
import time
from typing import Any

import numpy as np

import psum.mxnet
from psum.mxnet.compat import mx
from psum.mxnet.staging.device_pipeline import DevicePipeline
from psum.mxnet.staging.lent_sums import LentSums

STEPS = 4
SIZES = {"small": 1000, "large": 300_000, "larger": 1_500_000, "odd": 900_001}


class LateCopies:
    """Copies when it is waited for, and takes its time."""

    def __init__(self) -> None:
        self._queued: list[tuple[int, int, int]] = []

    def begin(self) -> None:
        pass

    def to_host(self, target: int, source: int, size: int, *, pinned: bool) -> None:
        self._queued.append((target, source, size))

    def to_device(self, target: int, source: int, size: int, *, pinned: bool) -> None:
        self._queued.append((target, source, size))

    def wait(self) -> None:
        time.sleep(0.002)
        for target, source, size in self._queued:
            ctypes.memmove(target, source, size)
        self._queued.clear()


lent = 0
pinned = LentSums.pinned


def counted(self: LentSums, *arguments: Any) -> bool:
    global lent
    lent += 1
    return pinned(self, *arguments)


LentSums.pinned = counted  # type: ignore[assignment, method-assign]
copies = LateCopies()
pipeline = DevicePipeline(lambda device: copies)
store = psum.mxnet.BytePS(in_place=lambda context: False, pipeline_of=lambda context: pipeline)
ranks = store.num_workers


def values(size: int, step: int, rank: int) -> Any:
    return (np.arange(size) % 251 + step + rank).astype(np.float32)


arrays = {key: mx.nd.zeros((size,)) for key, size in SIZES.items()}
for step in range(STEPS):
    for key, size in SIZES.items():
        arrays[key][:] = values(size, step, store.rank)
        store.pushpull(key, arrays[key])
    for key, size in SIZES.items():
        total = sum(values(size, step, rank) for rank in range(ranks))
        assert np.array_equal(arrays[key].asnumpy(), total), (key, step)
print(f"{lent} lent", flush=True)

# Several rounds of a key under way at once, in arrays of their own, and steps that are queued ahead.
several = [mx.nd.full((300_000,), store.rank + number) for number in range(8)]
for array in several:
    store.pushpull("several", array)
for _ in range(3):
    for key in SIZES:
        store.pushpull(key, arrays[key])
for number, array in enumerate(several):
    assert np.all(array.asnumpy() == sum(rank + number for rank in range(ranks))), number
for key, size in SIZES.items():
    total = sum(values(size, STEPS - 1, rank) for rank in range(ranks)) * ranks**3
    assert np.array_equal(arrays[key].asnumpy(), total), key
