"""Whether the members of a new group mean the same group."""

import json
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from psum.client import DisagreementError, RoundTimeoutError

_ADVICE: Final = "All ranks must call new_group in the same order with the same ranks, also for groups without them"


def check_members(store: Any, name: str, rank: int, ranks: Sequence[int], timeout: timedelta) -> None:
    """Waits until all members of a group have said which ranks it has, and compares.

    torch.distributed numbers groups in the order of their creation. Ranks that create groups in different orders give
    one name to different groups.

    Args:
        store: torch's store, with a namespace for each name of a group.
        name: The group's name.
        rank: This process's rank among all processes.
        ranks: The group's ranks among all processes, as this process sees them.
        timeout: How long to wait for the others.

    Raises:
        DisagreementError: Another member's list is different.
        RoundTimeoutError: Another member has not created the group.
    """
    mine = json.dumps(list(ranks))
    store.set(f"psum/ranks/{rank}", mine)
    deadline = time.monotonic() + timeout.total_seconds()
    for other in ranks:
        key = f"psum/ranks/{other}"
        left = timedelta(seconds=max(0.001, deadline - time.monotonic()))
        try:
            store.wait([key], left)
        except RuntimeError as error:
            raise RoundTimeoutError(
                f"group {name!r} with the ranks {mine} was created on rank {rank}, and not on rank {other} within"
                f" {timeout.total_seconds():g} s ({error}). {_ADVICE}",
                ranks=[other],
            ) from None
        theirs = store.get(key).decode()
        if theirs != mine:
            raise DisagreementError(
                f"rank {rank} created group {name!r} with the ranks {mine}, and rank {other} with {theirs}. {_ADVICE}",
                ranks=[other],
            )
