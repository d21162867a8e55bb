"""Which of the workers that ended is the cause, and which only found that others were gone."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Final

from psum.cli.launch.processes import describe
from psum.client.exit_status import PEER_FAULT_STATUS
from psum.client.observe.fault_report import FaultReport

_HINTS: Final = {
    "module 'numpy' has no attribute 'bool'": "MXNet cannot be imported with this NumPy unless psum.mxnet was imported"
    " before it; take it by `from psum.mxnet import mx` instead of `import mxnet as mx`, as tools that sort imports put"
    " mxnet first",
}
"""What to do about errors that say nothing of it, by a part of their text."""


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a worker ended.

    Attributes:
        rank: Its rank.
        code: Its return code, negative for a signal.
        error: The exception that it ended with, '' where none is known.
        fault: The first failure that its aggregators told it of, if any.
    """

    rank: int
    code: int
    error: str
    fault: FaultReport | None

    @property
    def is_consequence(self) -> bool:
        """Whether it ended after it was told that other ranks had failed."""
        if self.code == PEER_FAULT_STATUS:
            return True
        return self.fault is not None and bool(self.fault.ranks) and self.rank not in self.fault.ranks

    def __str__(self) -> str:
        """For people, as in 'rank 1, RuntimeError: no more data'."""
        if self.error:
            how = self.error if self.code > 0 else f"{self.error}; it {describe(self.code)}"
        elif self.is_consequence and self.fault is not None:
            how = f"which {describe(self.code)} after it was told: {self.fault.text}"
        else:
            how = f"which {describe(self.code)}"
        hints = [hint for part, hint in _HINTS.items() if part in self.error]
        return f"rank {self.rank}, {'; '.join([how, *hints])}"


def cause(failed: Sequence[Ending]) -> Ending:
    """The first of the workers that failed by themselves, or the first of all where each was told of others."""
    return next((ending for ending in failed if not ending.is_consequence), failed[0])


def suspects(failed: Sequence[Ending], running: Collection[int]) -> set[int]:
    """The ranks that still run and are said to have failed, while no worker that ended is the cause."""
    if not failed or not all(ending.is_consequence for ending in failed):
        return set()
    return {rank for ending in failed if ending.fault is not None for rank in ending.fault.ranks} & set(running)
