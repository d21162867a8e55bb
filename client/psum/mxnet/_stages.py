"""Arrays in host memory that stand in for those of devices, reused from step to step."""

import dataclasses
import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from psum.client import Block
from psum.mxnet import _cuda
from psum.mxnet._arguments import Arrays
from psum.mxnet._compat import mx


class Stage(NamedTuple):
    """A lent array.

    Attributes:
        array: The array.
        place: Where it lies in the memory that aggregators on this host read from, None where it does not.
    """

    array: Any
    place: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class StageStatistics:
    """How many arrays a pool holds.

    Attributes:
        allocated: Those that it has made and not dropped.
        in_use: Those of them that are lent.
    """

    allocated: int
    in_use: int


class StagePool:
    """Lends arrays in pinned memory, which a GPU copies from and to without a detour.

    An array that is given back may still be read by copies that the engine has queued: whoever borrows it next queues
    behind them. So the pool grows to as many arrays as are in use at once, and no further.

    Args:
        allocate: Gives memory that aggregators on this host read from, None where there is none: then MXNet's own is
            used.
    """

    def __init__(self, allocate: Callable[[int], Block | None] = lambda size: None) -> None:
        self._allocate = allocate
        self._idle: dict[tuple[object, ...], list[Stage]] = {}
        self._allocated = 0
        self._in_use = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<StagePool {self.statistics()}>"

    def take(self, like: Arrays) -> Stage:
        """An array of the shape and type of others, with any content."""
        with self._lock:
            idle = self._idle.get((like.shape, like.element_type))
            if idle:
                self._in_use += 1
                return idle.pop()
        stage = self._make(like)
        with self._lock:
            self._allocated += 1
            self._in_use += 1
        return stage

    def give_back(self, stage: Stage, like: Arrays) -> None:
        """Returns what was taken for these others."""
        with self._lock:
            self._in_use -= 1
            self._idle.setdefault((like.shape, like.element_type), []).append(stage)

    def drop(self) -> None:
        """What was taken does not come back: an operation on it failed, and MXNet would fail all later ones too."""
        with self._lock:
            self._in_use -= 1
            self._allocated -= 1

    def statistics(self) -> StageStatistics:
        """The counts of this moment."""
        with self._lock:
            return StageStatistics(self._allocated, self._in_use)

    def _make(self, like: Arrays) -> Stage:
        # What NumPy has no type for, as bfloat16, MXNet takes from nobody.
        block = self._allocate(like.nbytes) if like.element_type.numpy == np.dtype(like.dtype) else None
        if block is None:
            return Stage(mx.nd.empty(like.shape, mx.cpu_pinned(), like.dtype), None)
        memory = np.frombuffer(block.view, like.element_type.numpy, math.prod(like.shape))
        _cuda.pin(memory.ctypes.data, like.nbytes)
        return Stage(mx.nd.from_numpy(memory.reshape(like.shape), zero_copy=True), block.place)
