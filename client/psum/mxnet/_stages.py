"""Arrays in host memory that stand in for those of devices, reused from step to step."""

import dataclasses
import threading
from typing import Any

from psum.mxnet._arguments import Arrays
from psum.mxnet._compat import mx


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
    """

    def __init__(self) -> None:
        self._idle: dict[tuple[object, ...], list[Any]] = {}
        self._allocated = 0
        self._in_use = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<StagePool {self.statistics()}>"

    def take(self, like: Arrays) -> Any:
        """An array of the shape and type of others, with any content."""
        with self._lock:
            idle = self._idle.get((like.shape, like.element_type))
            if idle:
                self._in_use += 1
                return idle.pop()
        array = mx.nd.empty(like.shape, mx.cpu_pinned(), like.dtype)
        with self._lock:
            self._allocated += 1
            self._in_use += 1
        return array

    def give_back(self, array: Any, like: Arrays) -> None:
        """Returns what was taken for these others."""
        with self._lock:
            self._in_use -= 1
            self._idle.setdefault((like.shape, like.element_type), []).append(array)

    def drop(self) -> None:
        """What was taken does not come back: an operation on it failed, and MXNet would fail all later ones too."""
        with self._lock:
            self._in_use -= 1
            self._allocated -= 1

    def statistics(self) -> StageStatistics:
        """The counts of this moment."""
        with self._lock:
            return StageStatistics(self._allocated, self._in_use)
