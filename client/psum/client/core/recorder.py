"""Records when each shard passed each stage, for some steps of a training.

The session tells the recorder when an operation passes a stage. psum.client.observe.trace writes what was recorded to a
file.
"""

from typing import Final, NamedTuple

from psum.client.core.key import Key
from psum.client.core.operation import Operation
from psum.runtime import captioned

#: The most shards that are recorded: about 20 MB of memory, and a file of up to 60 MB.
MAX_SHARDS: Final = 50_000

#: The most changes of the members that are recorded.
_MAX_MARKS: Final = 1000


class ShardRecord:
    """The stages of one shard of one operation. Times are in seconds of the session's clock, None until then."""

    __slots__ = (
        "copied",
        "forwarding",
        "index",
        "last_rank",
        "operation",
        "queued",
        "received",
        "sent",
        "size",
        "summing",
        "waiting",
        "written",
    )

    def __init__(self, operation: "OperationRecord", index: int, size: int, queued: float) -> None:
        self.operation = operation
        self.index = index
        self.size = size
        """The shard's size in bytes."""
        self.queued = queued
        """When it began to wait for its turn."""
        self.sent: float | None = None
        """When its turn came."""
        self.copied: float | None = None
        """When its message was made, and its value copied into it or into shared memory."""
        self.received: float | None = None
        """When the message with its result came."""
        self.written: float | None = None
        """When the result was written to its place."""
        self.last_rank: int | None = None
        """The rank whose contribution came last to the aggregator, None if that is not known."""
        self.waiting = 0.0
        """Seconds that this rank's contribution waited in the aggregator, or at both levels, for the last one."""
        self.summing = 0.0
        """Seconds from the last contribution until the sum was made."""
        self.forwarding = 0.0
        """Seconds that it was on its way between a relay and the aggregator that owns it; 0 without a relay."""


class OperationRecord:
    """The stages of one operation on one key. Times are as in ShardRecord."""

    __slots__ = ("broadcast", "ended", "key", "ready", "reserved", "round", "shards", "step")

    def __init__(self, key: Key, round: int, step: int, reserved: float) -> None:
        self.key = captioned(key.name, key.label)
        self.broadcast = key.operation is Operation.BROADCAST
        self.round = round
        self.step = step
        self.reserved = reserved
        """When the program reserved it."""
        self.ready: float | None = None
        """When its value was there."""
        self.ended: float | None = None
        """When its result was complete; None if it failed."""
        self.shards: list[ShardRecord] = []


class MarkRecord(NamedTuple):
    """Something that happened at one moment: a rank of an elastic job was lost, or a process joined it.

    Attributes:
        at: When this rank knew it, in seconds of the session's clock.
        name: What, such as "rank 2 is lost".
        text: Which process, and why; empty if that is not known.
    """

    at: float
    name: str
    text: str


class Recorder:
    """Records the operations of some steps on one worker.

    Steps count from 0 in the order of reservation, which is the program's order. A step begins when a key is
    push-pulled that was already push-pulled in the current step. If each key is push-pulled once a step, the step is
    the key's round, and every rank counts alike. A key that is used rarely, or late for the first time, belongs to the
    step in which it is used. A second training in the same process goes on counting. Broadcasts begin no steps.

    Args:
        first: The first step to record.
        last: The last one.
        max_shards: The most shards that are recorded. Beyond it, the recording ends with the last complete step.
    """

    def __init__(self, first: int, last: int, max_shards: int = MAX_SHARDS) -> None:
        self.first = first
        self.last = last
        self.full = False
        """Whether recording ended before the last step because it reached max_shards."""
        self.operations: list[OperationRecord] = []
        """What was recorded, in the order of reservation."""
        self.before: float | None = None
        """When the step before the first one ended, None if that was not seen."""
        self.marks: list[MarkRecord] = []
        """How the members of an elastic job have changed meanwhile."""
        self._room = max_shards
        self._step = 0
        self._latest: dict[int, int] = {}
        """The last step in which each key was summed, by the key's id."""
        self._past = False
        """Whether a step after the last one has begun."""
        self._open: set[OperationRecord] = set()

    def __repr__(self) -> str:
        return f"<Recorder steps={self.first}-{self.last} at={self._step} operations={len(self.operations)}>"

    @property
    def over(self) -> bool:
        """Whether recording is complete."""
        return self._past and not self._open

    def reserved(self, key: Key, round: int, now: float) -> OperationRecord | None:
        """Notes that an operation was reserved. One call at a time.

        Returns:
            Its record, None if it is not recorded.
        """
        if key.operation is Operation.SUM:
            if self._latest.get(key.id) == self._step:
                self._step += 1
            self._latest[key.id] = self._step
        step = self._step
        if not self._latest:
            # Broadcasts before the first step are part of the set-up, not of the training.
            return None
        self._past = self._past or step > self.last
        if self._past or step < self.first:
            return None
        room = max(1, len(key.shards))
        if room > self._room:
            # An incomplete step would be misleading.
            self.full = self._past = True
            self.last = step - 1
            return None
        self._room -= room
        operation = OperationRecord(key, round, step, now)
        self.operations.append(operation)
        self._open.add(operation)
        return operation

    def mark(self, now: float, name: str, text: str = "") -> None:
        """Notes that the members of an elastic job have changed. Only while steps are recorded."""
        if self.operations and not self._past and len(self.marks) < _MAX_MARKS:
            self.marks.append(MarkRecord(now, name, text))

    def completed(self, operation: OperationRecord | None, now: float) -> None:
        """Notes that an operation, recorded or not, has its result."""
        if operation is not None:
            operation.ended = now
        elif not self._past:
            self.before = now

    def ended(self, operation: OperationRecord) -> None:
        """Notes that an operation has ended, successfully or not."""
        self._open.discard(operation)

    def steps(self) -> list[int]:
        """The complete steps: those whose operations have all succeeded."""
        seen = {o.step for o in self.operations if not o.broadcast}
        broken = {o.step for o in self.operations if o.ended is None}
        return sorted(step for step in seen - broken if step <= self.last)

    def shards(self) -> list[ShardRecord]:
        """The records of all shards that have their results."""
        return [
            shard
            for operation in self.operations
            for shard in operation.shards
            if operation.step <= self.last and shard.written is not None
        ]
