"""A barrier that names the ranks that have not come."""

import itertools
import json
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import torch.distributed as dist
from psum.client import MissingRanksError

#: The pauses between looks into the store.
_FIRST_PAUSE_SECONDS: Final = 0.002
_LONGEST_PAUSE_SECONDS: Final = 0.05


class MonitoredBarrier:
    """One group's monitored barriers, through torch's store: they also work while collectives hang.

    Rank 0 waits for the other ranks, and then tells them the outcome. Errors begin with the words of Gloo's barrier,
    which programs may look for. Ranks are ranks in the group.

    Args:
        store: torch's store, with a namespace for the group.
        job: The name of the group's job, which is another one after a restart with the same store.
        rank: This process's rank.
        size: The number of ranks.
    """

    def __init__(self, store: Any, job: str, rank: int, size: int) -> None:
        self._store = dist.PrefixStore(f"psum/barrier/{job}", store)
        self._rank = rank
        self._size = size
        self._numbers = itertools.count()

    def wait(self, timeout: timedelta, *, all_ranks: bool) -> None:
        """Waits until all ranks have called this.

        Args:
            timeout: How long rank 0 waits. The others wait twice as long, because rank 0 may be late itself.
            all_ranks: Whether rank 0 looks for all ranks that are missing, or for the first.

        Raises:
            MissingRanksError: A rank has not called this in time. All ranks get this error, also one that comes later.
        """
        number = next(self._numbers)
        seconds = timeout.total_seconds()
        if self._rank == 0:
            missing = self._find_missing(number, seconds, all_ranks)
            self._store.set(f"{number}/missing", json.dumps(missing))
            if missing:
                raise MissingRanksError(_text_on_rank_0(missing, seconds), ranks=missing)
            self._forget(number)
            return
        self._store.set(f"{number}/{self._rank}", "")
        came = (
            f"Rank {self._rank} successfully reached monitoredBarrier, but received errors while waiting for send/recv"
            " from rank 0"
        )
        if not self._comes(f"{number}/missing", time.monotonic() + 2 * seconds):
            raise MissingRanksError(f"{came}, which did not come within {2 * seconds:g} s", ranks=[0])
        missing = json.loads(self._store.get(f"{number}/missing"))
        if missing:
            raise MissingRanksError(f"{came}, for which {_names(missing).lower()} did not come in time", ranks=missing)

    def _find_missing(self, number: int, seconds: float, all_ranks: bool) -> list[int]:
        deadline = time.monotonic() + seconds
        missing = []
        for rank in range(1, self._size):
            if not self._comes(f"{number}/{rank}", deadline):
                missing.append(rank)
                if not all_ranks:
                    break
        return missing

    def _comes(self, key: str, deadline: float) -> bool:
        """Whether a key is there, now or until a moment."""
        pause = _FIRST_PAUSE_SECONDS
        # Not with Store.wait: Ctrl-C has no effect during that.
        while not self._store.check([key]):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        return True

    def _forget(self, number: int) -> None:
        """Deletes what nobody reads again: all ranks have come to this barrier, and so have left the one before."""
        for rank in range(1, self._size):
            self._store.delete_key(f"{number}/{rank}")
        self._store.delete_key(f"{number - 1}/missing")


def _text_on_rank_0(missing: Sequence[int], seconds: float) -> str:
    if seconds <= 0:
        return f"Rank 0 timed out in monitoredBarrier: in {seconds:g} s, {_names(missing).lower()} could not come"
    return (
        f"{_names(missing)} failed to pass monitoredBarrier in {seconds:g} s: not called as often as on rank 0, or the"
        " process has ended. The logs and stacks of these processes may say why"
    )


def _names(ranks: Sequence[int]) -> str:
    return f"{'Rank' if len(ranks) == 1 else 'Ranks'} {', '.join(map(str, ranks))}"
