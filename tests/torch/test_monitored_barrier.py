"""The barrier that names the ranks that have not come."""

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from psum.client import MissingRanksError
from tests.torch.ranks import Ranks

_LONG = timedelta(seconds=20)


def late(ranks: list[int], all_ranks: bool, seconds: float) -> tuple[str, tuple[int, ...]]:
    """All ranks pass two barriers. Some come to the third after the others have given up. All pass the fourth."""
    group: Any = dist.group.WORLD
    group.monitored_barrier(_LONG)
    group.monitored_barrier(wait_all_ranks=True)
    if dist.get_rank() in ranks:
        dist.barrier()
    with pytest.raises(MissingRanksError) as caught:
        group.monitored_barrier(timedelta(seconds=seconds), wait_all_ranks=all_ranks)
    if dist.get_rank() not in ranks:
        dist.barrier()
    group.monitored_barrier(_LONG)
    return str(caught.value), caught.value.ranks


@pytest.mark.parametrize(("all_ranks", "named"), [(False, (1,)), (True, (1, 3))])
def test_all_ranks_hear_who_is_missing(ranks: Ranks, all_ranks: bool, named: tuple[int, ...]) -> None:
    """Rank 0 names the first rank that is missing, or all. The others, and those that come later, hear the same."""
    # Long enough for the others, which come out of the barrier before at different moments.
    (first, *others) = ranks.run(4, late, [1, 3], all_ranks, 2.0)
    names = ", ".join(map(str, named))
    assert f"{names} failed to pass monitoredBarrier" in first[0]
    for rank, (text, missing) in enumerate(others, 1):
        assert text.startswith(f"Rank {rank} successfully reached monitoredBarrier, but")
        assert names in text
        assert missing == named
    assert first[1] == named


def without_rank_0() -> tuple[int, ...]:
    group: Any = dist.group.WORLD
    if dist.get_rank() == 0:
        dist.barrier()
        return ()
    with pytest.raises(MissingRanksError, match="rank 0, which did not come") as caught:
        group.monitored_barrier(timedelta(seconds=0.2))
    dist.barrier()
    return caught.value.ranks


def test_rank_0_is_missing(ranks: Ranks) -> None:
    """If rank 0 itself does not come, the others name it."""
    assert ranks.run(3, without_rank_0)[1:] == [(0,), (0,)]


def while_a_collective_hangs() -> tuple[int, ...]:
    group: Any = dist.group.WORLD
    tensor = torch.ones(3)
    if dist.get_rank():
        work = dist.all_reduce(tensor, async_op=True)
        dist.barrier()
        work.wait()
        return ()
    with pytest.raises(MissingRanksError) as caught:
        group.monitored_barrier(timedelta(seconds=0.2), wait_all_ranks=True)
    dist.all_reduce(tensor)
    dist.barrier()
    return caught.value.ranks


def test_it_works_beside_a_collective_that_hangs(ranks: Ranks) -> None:
    """Rank 0 finds out which ranks are in a collective that it has not begun."""
    assert ranks.run(3, while_a_collective_hangs)[0] == (1, 2)
