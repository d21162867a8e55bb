"""One operation on one key by this worker, from its announcement to its end."""

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from psum.client.core.buffers import Memory
from psum.client.core.placement import Shard
from psum.client.transport.shared_memory import SharedMemory
from psum.wire.errors import PsumError

if TYPE_CHECKING:
    from psum.client.core.keys import Key
    from psum.client.core.recorder import OperationRecord, ShardRecord

Done = Callable[[PsumError | None], None]


class State(enum.Enum):
    """Where an operation stands."""

    RESERVED = "its round is fixed, its value is not there yet"
    QUEUED = "its value is there, an earlier round of its key is not complete"
    RUNNING = "its shards are under way"
    ABORTED = "its value will never be there"
    FINISHED = "its result is there, or it failed"


# Found faster than as an attribute of the class, which is asked for with each shard.
_RUNNING: Final = State.RUNNING


class Ticket:
    """An operation whose round is fixed, to be started or aborted exactly once.

    Made by Store.reserve. The rounds of a key are taken in the order of reservation, which is the program's, so that
    all ranks mean the same round whatever the order in which their values become ready.
    """

    __slots__ = (
        "_hand_over",
        "done",
        "key",
        "pending",
        "priority",
        "reason",
        "record",
        "round",
        "source",
        "staged",
        "state",
        "target",
    )

    def __init__(self, key: "Key", round: int, priority: int, hand_over: Callable[["Ticket"], None]) -> None:
        self.key = key
        self.round = round
        self.priority = priority
        self.state = State.RESERVED
        self.source: Memory | None = None
        """What this rank contributes; None where it only receives."""
        self.staged: int | None = None
        """Where in the client's staging memory the source lies, None where it lies elsewhere."""
        self.target: Memory | None = None
        """Where the result goes; None where it is not wanted."""
        self.done: Done | None = None
        self.reason = ""
        """Why it was aborted."""
        self.pending = 0
        """Shards whose result has not come yet."""
        self.record: OperationRecord | None = None
        """What is recorded of it, None where nothing is."""
        self._hand_over = hand_over

    def __repr__(self) -> str:
        return f"<Ticket {self.key.title} round {self.round} {self.state.name}>"

    def start(self, source: Memory | None, target: Memory | None, done: Done, staged: int | None = None) -> None:
        """The value is there. Returns at once; from any thread.

        Args:
            source: The value, flat bytes or an array, final; None on a rank that only receives a broadcast. Read until
                `done`.
            target: Where the result is to be written, likewise; may be the source's memory. Written until `done`.
            done: Called exactly once, from any thread, with None or the error. Must be short and not raise.
            staged: The source's place in the client's staging memory, None where it does not lie there.
        """
        self._decide(State.QUEUED)
        self.source, self.target, self.done, self.staged = source, target, done, staged
        self._hand_over(self)

    def abort(self, reason: str) -> None:
        """The value will never be there. Every rank's operations on this key fail from this round on.

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


class Part:
    """One shard of a key's running operation: what the scheduler schedules.

    The operations of a key come one after another, and all use the same: objects that live long cost the collector
    nothing, thousands that come and go with each step do. Only a key that fails leaves some in a queue, and has no
    further operation.
    """

    __slots__ = (
        "credited",
        "place",
        "priority",
        "pulls",
        "queued",
        "record",
        "sent",
        "shard",
        "size",
        "ticket",
        "where",
    )

    def __init__(self, key_id: int, shard: Shard, ticket: Ticket, now: float = 0.0) -> None:
        self.where = key_id, shard.index
        """Which shard it is: (key's id, shard)."""
        self.shard = shard
        self.begin(ticket, now)

    def begin(self, ticket: Ticket, now: float) -> None:
        """It belongs to this operation from now on."""
        self.queued = self.sent = now
        """When it began to wait, and when it was sent last."""
        self.ticket = ticket
        self.priority = ticket.priority
        self.pulls = ticket.source is None
        self.size = 0 if self.pulls else self.shard.size
        """Bytes that it brings under way."""
        self.place: tuple[SharedMemory, int] | None = None
        """Where its value lies in shared memory, None where it was not put there."""
        self.credited = False
        """Whether its bytes count against the credit no more, though its result has not come."""
        self.record: ShardRecord | None = None
        """What is recorded of it, None where nothing is."""

    @property
    def staged(self) -> int | None:
        """Where in the client's staging memory its value lies, None where it lies elsewhere."""
        return None if self.ticket.staged is None else self.ticket.staged + self.shard.start

    @property
    def cancelled(self) -> bool:
        return self.ticket.state is not _RUNNING
