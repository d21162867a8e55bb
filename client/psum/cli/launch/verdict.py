"""Decide which failed worker is the cause, and which workers only failed because others were gone."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Final

from psum.cli.launch.processes import describe
from psum.client.exit_status import PEER_FAULT_STATUS
from psum.client.observe.fault_report import FaultReport

_HINTS: Final = {
    "module 'numpy' has no attribute 'bool'": "MXNet cannot be imported with this NumPy unless psum.mxnet was imported"
    " before it; write `from psum.mxnet import mx` instead of `import mxnet as mx`, because tools that sort imports put"
    " mxnet first",
}
"""Advice for errors whose text gives none, by a part of the text."""


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a worker ended.

    Attributes:
        rank: The worker's rank.
        code: The return code, negative for a signal.
        error: The exception that ended it, '' if unknown.
        fault: The first failure that its aggregators reported to it, if any.
    """

    rank: int
    code: int
    error: str
    fault: FaultReport | None

    @property
    def is_consequence(self) -> bool:
        """Whether the worker ended because other ranks had failed, by its exit status or its report."""
        if self.code == PEER_FAULT_STATUS:
            return True
        return self.fault is not None and bool(self.fault.ranks) and self.rank not in self.fault.ranks

    def __str__(self) -> str:
        """Return a description, such as 'rank 1, RuntimeError: no more data'."""
        if self.error:
            how = self.error if self.code > 0 else f"{self.error}; it {describe(self.code)}"
        elif self.is_consequence and self.fault is not None:
            how = f"which {describe(self.code)} after the report: {self.fault.text}"
        else:
            how = f"which {describe(self.code)}"
        hints = [hint for part, hint in _HINTS.items() if part in self.error]
        return f"rank {self.rank}, {'; '.join([how, *hints])}"


def cause(failed: Sequence[Ending]) -> Ending:
    """Return the first worker that failed by itself. If all are consequences of others, return the first."""
    return next((ending for ending in failed if not ending.is_consequence), failed[0])


def suspects(failed: Sequence[Ending], running: Collection[int]) -> set[int]:
    """Return running ranks that are reported as failed, if all ended workers are consequences."""
    if not failed or not all(ending.is_consequence for ending in failed):
        return set()
    return {rank for ending in failed if ending.fault is not None for rank in ending.fault.ranks} & set(running)
