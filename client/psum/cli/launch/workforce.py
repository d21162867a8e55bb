"""Decide what follows when a worker of an elastic job ends: whether another process takes its place, and when.

Pure: it is told what happens and when, and decides.
"""

import dataclasses
import enum
from typing import Final

#: A process that has lived for less than this ended at once.
_SOON_SECONDS: Final = 10.0

#: The pause before the first process that follows one that ended at once. It doubles with each.
_FIRST_PAUSE_SECONDS: Final = 0.5
_MAX_PAUSE_SECONDS: Final = 30.0

#: How many processes of a rank in a row may end before they have joined the job.
MAX_FAILED_STARTS: Final = 4


class State(enum.Enum):
    """What a rank does."""

    MEMBER = "member"
    """Its process takes part in the job, or is one of those that the job begins with."""
    JOINING = "joining"
    """Its process has taken the place of one that has ended, and has not joined yet."""
    DUE = "due"
    """A process is to be started."""
    FINISHED = "finished"
    """Its process has ended well."""
    GONE = "gone"
    """Its process has failed, and no other takes its place."""


@dataclasses.dataclass
class _Rank:
    state: State = State.MEMBER
    started: float = 0.0
    due: float = 0.0
    was_member: bool = False
    """Whether some process of this rank has joined the job."""
    soon: int = 0
    """How many processes in a row have ended at once."""
    failed_starts: int = 0
    """How many processes in a row have ended before they had joined."""


class Workforce:
    """The ranks of an elastic job on this machine.

    Args:
        workers: How many ranks the job begins with.
        minimum: The least number of workers with which it goes on.
        replace: Whether a process that has failed is replaced.
        now: The time; all ranks' processes are started now.
    """

    def __init__(self, workers: int, minimum: int, *, replace: bool, now: float) -> None:
        self._minimum = minimum
        self._replace = replace
        self._ranks = {rank: _Rank(started=now) for rank in range(workers)}

    @property
    def left(self) -> int:
        """How many ranks take part, or have ended well."""
        return sum(each.state in (State.MEMBER, State.FINISHED) for each in self._ranks.values())

    @property
    def enough(self) -> bool:
        """Whether the ranks that take part, or have ended well, are as many as the job needs."""
        return self.left >= self._minimum

    @property
    def goes_on(self) -> bool:
        """Whether the job goes on: also if it needs ranks that the members still wait for, as at its beginning.

        A rank that was lost is none of these: the members let its successor in after a step, and no step ends when too
        few are left.
        """
        awaited = sum(not self._ranks[rank].was_member for rank in self.ranks(State.DUE))
        return self.left + awaited >= self._minimum

    @property
    def over(self) -> bool:
        """Whether no member runs any more, or too few are left. Processes that have not joined are of no use then."""
        return not self.goes_on or not self.ranks(State.MEMBER)

    def ranks(self, state: State) -> list[int]:
        """The ranks in a state, in ascending order."""
        return [rank for rank, each in self._ranks.items() if each.state is state]

    def state(self, rank: int) -> State:
        """What a rank does."""
        return self._ranks[rank].state

    def started_at(self, rank: int) -> float:
        """When the present process of a rank was started."""
        return self._ranks[rank].started

    def has_been_member(self, rank: int) -> bool:
        """Whether some process of this rank has joined: a new one has to be admitted by the others."""
        return self._ranks[rank].was_member

    def next_start(self) -> float | None:
        """When the next process is to be started; None if none is."""
        return min((each.due for each in self._ranks.values() if each.state is State.DUE), default=None)

    def due(self, now: float) -> list[int]:
        """The ranks whose next process is to be started now."""
        return [rank for rank in self.ranks(State.DUE) if self._ranks[rank].due <= now]

    def started(self, rank: int, now: float) -> None:
        """Notes that a process was started in a rank that was due."""
        each = self._ranks[rank]
        each.started = now
        # A rank of which no process has joined yet is one that the job begins with.
        each.state = State.JOINING if each.was_member else State.MEMBER

    def joined(self, rank: int) -> bool:
        """Notes that the present process of a rank is a member. Returns whether that is news of a replacement."""
        each = self._ranks[rank]
        each.was_member = True
        each.failed_starts = 0
        if each.state is not State.JOINING:
            return False
        each.state = State.MEMBER
        return True

    def lost(self, rank: int) -> None:
        """Notes that a process of a rank had joined and was lost: the next one has to be admitted by the others."""
        if rank in self._ranks:
            self._ranks[rank].was_member = True

    def finished(self, rank: int) -> None:
        """Notes that the process of a rank has ended well."""
        self._ranks[rank].state = State.FINISHED

    def failed(self, rank: int, now: float, *, member: bool | None) -> None:
        """Notes that the process of a rank has failed. The rank is due, or gone, after that.

        Args:
            rank: The rank.
            now: The time.
            member: Whether the process had joined the job; None if nobody knows. Then it counts as a member if it has
                lived for some time.
        """
        each = self._ranks[rank]
        soon = now - each.started < _SOON_SECONDS
        if member if member is not None else not soon:
            self.joined(rank)
        else:
            each.failed_starts += 1
        each.soon = each.soon + 1 if soon else 0
        if not self._replace or each.failed_starts >= MAX_FAILED_STARTS:
            each.state = State.GONE
            return
        each.state = State.DUE
        pause = _FIRST_PAUSE_SECONDS * 2 ** (each.soon - 1) if each.soon else 0.0
        each.due = now + min(pause, _MAX_PAUSE_SECONDS)

    def pause(self, rank: int, now: float) -> float:
        """How long it takes until the next process of a rank that is due is started."""
        return max(0.0, self._ranks[rank].due - now)

    def failed_starts(self, rank: int) -> int:
        """How many processes of a rank in a row have ended before they had joined."""
        return self._ranks[rank].failed_starts
