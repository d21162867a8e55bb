"""Whether the members of a new group mean the same group."""

import json
import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import torch.distributed as dist
from psum.client import Client, ConnectError, DisagreementError, RoundTimeoutError, WorkerLostError, stragglers

_log = logging.getLogger(__name__)

_ADVICE: Final = "All ranks must call new_group in the same order with the same ranks, also for groups without them"

#: The pauses between looks into the store.
_FIRST_PAUSE_SECONDS: Final = 0.002
_LONGEST_PAUSE_SECONDS: Final = 0.1

#: How often to ask the aggregators whether a rank that does not come has left the job.
_ASK_SECONDS: Final = 2.0

#: When the log tells whom this rank waits for.
_WARN_SECONDS: Final = 10.0


class NewestGroups:
    """Which group each rank of a job has begun to create last.

    A rank that waits for another one sees here that it has gone on to a later group, and so will not come.

    Args:
        store: torch's store, which all ranks share.
        client: The membership in the job of the default group.
    """

    def __init__(self, store: Any, client: Client) -> None:
        # Several jobs may follow each other in one store.
        self._store = dist.PrefixStore(f"psum/newest/{client.settings.job}", store)
        self.client = client

    def tell(self, rank: int, name: str, ranks: Sequence[int], mistake: str = "") -> None:
        """Says which group this rank creates, or why it cannot."""
        self._store.set(str(rank), json.dumps([name, list(ranks), mistake]))

    def mistake_of(self, other: int, name: str) -> str:
        """Why another rank will not create a group of this name; empty if it still may."""
        if not self._store.check([str(other)]):
            return ""
        theirs, ranks, mistake = json.loads(self._store.get(str(other)))
        if mistake:
            return str(mistake)
        # torch numbers groups. Those with use_local_synchronization have other names, and no order.
        if not (theirs.isdecimal() and name.isdecimal() and int(theirs) > int(name)):
            return ""
        return f"rank {other} creates group {theirs!r} with the ranks {ranks} instead"


def check_members(
    store: Any, name: str, rank: int, ranks: Sequence[int], timeout: timedelta, newest: NewestGroups | None = None
) -> None:
    """Waits until all members of a group have said which ranks it has, and compares.

    torch.distributed numbers groups in the order of their creation. Ranks that create groups in different orders give
    one name to different groups.

    Args:
        store: torch's store, with a namespace for each name of a group.
        name: The group's name.
        rank: This process's rank among all processes.
        ranks: The group's ranks among all processes, as this process sees them.
        timeout: How long to wait for the others.
        newest: The groups that all ranks create; None if the default group is not psum's.

    Raises:
        DisagreementError: Another member's list is different, or it creates another group. All members that wait for
            this rank raise it too.
        ConnectError: torch's store does not answer.
        WorkerLostError: Another member has left the job.
        PsumError: The job of the default group has failed.
        RoundTimeoutError: Another member has not created the group.
    """
    mine = json.dumps(list(ranks))
    if newest is not None:
        newest.tell(rank, name, ranks)
    store.set(f"psum/ranks/{rank}", mine)
    meeting = _Meeting(store, name, rank, mine, timeout.total_seconds(), newest)
    try:
        for other in ranks:
            meeting.wait_for(other)
            theirs = store.get(f"psum/ranks/{other}").decode()
            if theirs != mine:
                raise DisagreementError(
                    f"rank {rank} created group {name!r} with the ranks {mine}, and rank {other} with {theirs}."
                    f" {_ADVICE}",
                    ranks=[other],
                )
    except dist.DistError as error:
        raise ConnectError(
            f"rank {rank} creates group {name!r} and got no answer from torch's store ({error}); has the process that"
            " keeps it ended?",
            address="",
        ) from None
    except DisagreementError as error:
        if newest is not None:
            newest.tell(rank, name, ranks, str(error))
        raise


class _Meeting:
    """Waits for the other members of one group, with one deadline."""

    def __init__(
        self, store: Any, name: str, rank: int, mine: str, seconds: float, newest: NewestGroups | None
    ) -> None:
        self._store = store
        self._title = f"group {name!r} with the ranks {mine}"
        self._name = name
        self._rank = rank
        self._seconds = seconds
        self._newest = newest
        self._begun = time.monotonic()
        self._next_question = self._begun + _ASK_SECONDS
        self._next_warning = self._begun + _WARN_SECONDS

    def wait_for(self, other: int) -> None:
        """Waits until another rank has said which ranks the group has.

        Raises:
            DisagreementError: That rank creates another group instead.
            RoundTimeoutError: It has not said so in time.
        """
        pause = _FIRST_PAUSE_SECONDS
        # Not with Store.wait: Ctrl-C has no effect during that.
        while not self._has(other):
            mistake = self._newest.mistake_of(other, self._name) if self._newest is not None else ""
            # It may have come in between, and have gone on.
            if mistake and not self._has(other):
                if _ADVICE not in mistake:
                    mistake = f"rank {self._rank} creates {self._title}, but {mistake}. {_ADVICE}"
                raise DisagreementError(mistake, ranks=[other])
            now = time.monotonic()
            if now > self._begun + self._seconds:
                raise RoundTimeoutError(
                    f"{self._title} was created on rank {self._rank}, and not on rank {other} within"
                    f" {self._seconds:g} s. {_ADVICE}",
                    ranks=[other],
                )
            if now > self._next_warning:
                _log.warning(
                    "%s was created on rank %d, which has waited %.0f s for rank %d to do so too. %s",
                    self._title,
                    self._rank,
                    now - self._begun,
                    other,
                    _ADVICE,
                )
                self._next_warning = now + 10 * _WARN_SECONDS
            if self._newest is not None and now > self._next_question:
                self._ask(self._newest.client, other)
                self._next_question = time.monotonic() + _ASK_SECONDS
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _has(self, other: int) -> bool:
        return bool(self._store.check([f"psum/ranks/{other}"]))

    def _ask(self, client: Client, other: int) -> None:
        """Raises if the other rank will not come, because it has left the job or the job has failed."""
        if client.failure is not None:
            raise client.failure.with_traceback(None)
        left = stragglers.departed(client, [other])
        if other in left and not self._has(other):
            raise WorkerLostError(f"{left[other]}, and did not create {self._title}. {_ADVICE}", ranks=[other])
