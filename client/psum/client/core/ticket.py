"""One operation on one key by this worker, from its reservation to its end."""

import enum
from collections.abc import Callable
from functools import partial
from typing import Final

from psum.client.core.buffers import Memory
from psum.client.core.contribution import Contribution, contributions
from psum.client.core.key import Key
from psum.client.core.recorder import OperationRecord
from psum.planes import Loan
from psum.wire.errors import PsumError

Done = Callable[[PsumError | None], None]

#: Gives the parts of a result to which not all ranks contributed, when the operation has ended.
Parts = Callable[[], tuple[Contribution, ...]]


class State(enum.Enum):
    """Where an operation stands."""

    RESERVED = "its round is fixed, its value is not there yet"
    QUEUED = "its value is there, an earlier round of its key is not complete"
    RUNNING = "its shards are under way"
    ABORTED = "its value will never be there"
    FINISHED = "its result is there, or it failed"


# Cached at module level: an enum's members take longer to find than all else here.
_RESERVED: Final = State.RESERVED
_QUEUED: Final = State.QUEUED


class Ticket:
    """An operation whose round is fixed, to be started or aborted exactly once.

    Store.reserve makes it. A key's rounds are numbered in the order of reservation, which is the program's order. So
    all ranks mean the same round, in whatever order their values become ready.
    """

    __slots__ = (
        "_hand_over",
        "alone",
        "borrows",
        "contributors",
        "done",
        "key",
        "loan",
        "pending",
        "priority",
        "reason",
        "record",
        "round",
        "source",
        "staged",
        "stands_in",
        "state",
        "target",
    )

    def __init__(self, key: Key, round: int, priority: int, hand_over: Callable[["Ticket"], None]) -> None:
        self.key = key
        self.round = round
        self.priority = priority
        self.state = _RESERVED
        self.source: Memory | None = None
        """What this rank contributes; None if it only receives."""
        self.staged: int | None = None
        """The source's offset in the client's staging memory, None if it lies elsewhere."""
        self.target: Memory | None = None
        """Where the result is written; None if it is not wanted."""
        self.stands_in = False
        """Whether the target of a broadcast has this rank's own value, which may take the place of a lost root's."""
        self.borrows = False
        """Whether the result may be lent rather than written to the target."""
        self.loan: Loan | None = None
        """The result, if it is lent; for `done` to take."""
        self.done: Done | None = None
        self.reason = ""
        """Why it was aborted."""
        self.pending = 0
        """Shards whose result has not come yet."""
        self.contributors: dict[int, int] | None = None
        """In an elastic job, how many ranks contributed to the sum of each shard to which not all did, by the shard's
        number within the key. None: all ranks contributed to all of it."""
        self.alone = False
        """Whether the result is only this rank's own contribution: it waits to join an elastic job."""
        self.record: OperationRecord | None = None
        """What is recorded of it, None if nothing is."""
        self._hand_over = hand_over

    def __repr__(self) -> str:
        return f"<Ticket {self.key.title} round {self.round} {self.state.name}>"

    @property
    def contributions(self) -> tuple[Contribution, ...]:
        """The parts of the result to which not all ranks contributed; none if all ranks contributed to all of it.

        To be read when the operation is done.
        """
        key = self.key
        if self.alone:
            return (Contribution(0, key.elements, 1),)
        return contributions(self.contributors, key.shards, key.element_type.itemsize) if self.contributors else ()

    def note_count(self, shard: int, count: int) -> None:
        """Notes how many ranks contributed to the sum of a shard: not all of them.

        A callback with a method `take_counts` is told, before it is called, how to find out the parts of the result.
        This costs nothing as long as all ranks contribute.

        Args:
            shard: The shard's number within the key.
            count: How many ranks.
        """
        if self.contributors is None:
            key, self.contributors = self.key, {}
            tell_counts(self.done, partial(contributions, self.contributors, key.shards, key.element_type.itemsize))
        self.contributors[shard] = count

    def start(
        self,
        source: Memory | None,
        target: Memory | None,
        done: Done,
        staged: int | None = None,
        *,
        borrows: bool = False,
        stands_in: bool = False,
    ) -> None:
        """Starts the operation: its value is there. Returns at once; from any thread.

        Args:
            source: The value, flat bytes or an array; None on a rank that only receives a broadcast. It is read until
                `done` is called, and must not change until then.
            target: Where the result is written, flat bytes or an array; may be the source's memory. It is written until
                `done` is called.
            done: Called exactly once, from any thread, with None or the error. It must return soon and not raise.
            staged: The source's offset in the client's staging memory, None if it does not lie there.
            borrows: Whether the result may be lent, if it lies in memory shared with the aggregators, rather than
                written to the target. While `done` is called, `loan` tells which. Take it from there if it is wanted
                for longer. Return it before this rank's next operation on the key: otherwise psum must copy it then.
            stands_in: On a rank that receives a broadcast: whether the target already has a value that all ranks may
                get instead, if the root is lost before it has sent its own. Otherwise the key fails then. Only in
                elastic jobs.
        """
        if self.state is not _RESERVED:
            self._decide(State.QUEUED)
        self.state = _QUEUED
        self.borrows, self.stands_in = borrows, stands_in
        self.source, self.target, self.done, self.staged = source, target, done, staged
        self._hand_over(self)

    def abort(self, reason: str) -> None:
        """Gives the operation up: its value will never be there. On every rank, the key fails from this round on.

        Args:
            reason: Why, for people.
        """
        self._decide(State.ABORTED)
        self.reason = reason
        self._hand_over(self)

    def _decide(self, state: State) -> None:
        if self.state is not State.RESERVED:
            raise RuntimeError(f"{self!r} was started or aborted already")
        self.state = state


def tell_counts(done: Done | None, parts: Parts) -> None:
    """Tells a callback that not all ranks contribute to the result, if it wants to know: if it has `take_counts`."""
    take: Callable[[Parts], None] | None = getattr(done, "take_counts", None)
    if take is not None:
        take(parts)
