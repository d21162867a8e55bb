"""Records when each shard passed each stage, for some steps of a training.

The recorder sees operations as the session takes them through their stages, and does nothing else: no I/O, no clock of
its own. What it has recorded is written to a file by psum.client.observe.trace.
"""

from typing import Final

from psum.client.core.keys import Key, Operation
from psum.wire import captioned

#: Shards that are recorded at most: some 20 MB of memory, and a file of up to 60 MB.
MAX_SHARDS: Final = 50_000


class ShardRecord:
    """What became of one shard of one operation. Times are in seconds of the session's clock, None before they came."""

    __slots__ = (
        "copied",
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
        """Bytes of the shard."""
        self.queued = queued
        """Its turn to be sent was waited for from then on."""
        self.sent: float | None = None
        """Its turn came."""
        self.copied: float | None = None
        """The message with it was made, or it lay in shared memory."""
        self.received: float | None = None
        """The message with its result was there."""
        self.written: float | None = None
        """The result was in its place."""
        self.last_rank: int | None = None
        """The rank whose contribution came last to the aggregator, None where that is not known."""
        self.waiting = 0.0
        """Seconds that this rank's contribution waited in the aggregator for that one."""
        self.summing = 0.0
        """Seconds from then until the sum was made."""


class OperationRecord:
    """One operation on one key. Times as in ShardRecord."""

    __slots__ = ("broadcast", "ended", "key", "ready", "reserved", "round", "shards", "step")

    def __init__(self, key: Key, round: int, step: int, reserved: float) -> None:
        self.key = captioned(key.name, key.label)
        self.broadcast = key.operation is Operation.BROADCAST
        self.round = round
        self.step = step
        self.reserved = reserved
        """It was announced: the program called for it."""
        self.ready: float | None = None
        """Its value was there."""
        self.ended: float | None = None
        """Its result was whole; None where it failed."""
        self.shards: list[ShardRecord] = []


class Recorder:
    """What one worker records.

    A step begins with the first push-pull of a key that was push-pulled in the step before: where each key is
    push-pulled once a step, the step is its round, and every rank counts alike. A key that is used now and then, or for
    the first time late, belongs to the step in which it was used, and a second training in the same process goes on
    counting. Broadcasts make no steps. They count from 0, in the order of reservation, which is the program's.

    Args:
        first: The first step to record.
        last: The last one.
        max_shards: How many shards are recorded at most; where that is reached, the recording ends with the last step
            that is whole.
    """

    def __init__(self, first: int, last: int, max_shards: int = MAX_SHARDS) -> None:
        self.first = first
        self.last = last
        self.full = False
        """Whether recording has ended before the last step, since there was no more room."""
        self.operations: list[OperationRecord] = []
        """In the order of their reservation."""
        self.before: float | None = None
        """When the step before the first one ended, None where it was not seen."""
        self._room = max_shards
        self._step = 0
        self._latest: dict[int, int] = {}
        """The last step in which each key was summed, by its id."""
        self._past = False
        """Whether a step after the last one was begun."""
        self._open: set[OperationRecord] = set()

    def __repr__(self) -> str:
        return f"<Recorder steps={self.first}-{self.last} at={self._step} operations={len(self.operations)}>"

    @property
    def over(self) -> bool:
        """Whether there is nothing more to come."""
        return self._past and not self._open

    def reserved(self, key: Key, round: int, now: float) -> OperationRecord | None:
        """An operation was reserved; returns where it is to be recorded, None where it is not. One call at a time."""
        if key.operation is Operation.SUM:
            if self._latest.get(key.id) == self._step:
                self._step += 1
            self._latest[key.id] = self._step
        step = self._step
        if not self._latest:
            # What is broadcast before the first step is set up, not trained.
            return None
        self._past = self._past or step > self.last
        if self._past or step < self.first:
            return None
        room = max(1, len(key.shards))
        if room > self._room:
            # Half a step would be misleading.
            self.full = self._past = True
            self.last = step - 1
            return None
        self._room -= room
        operation = OperationRecord(key, round, step, now)
        self.operations.append(operation)
        self._open.add(operation)
        return operation

    def completed(self, operation: OperationRecord | None, now: float) -> None:
        """A push-pull or broadcast, recorded or not, has its result."""
        if operation is not None:
            operation.ended = now
        elif not self._past:
            self.before = now

    def ended(self, operation: OperationRecord) -> None:
        """An operation will change no more, whether it succeeded or failed."""
        self._open.discard(operation)

    def steps(self) -> list[int]:
        """The steps that are whole: of which no operation failed, or has not ended yet."""
        seen = {o.step for o in self.operations if not o.broadcast}
        broken = {o.step for o in self.operations if o.ended is None}
        return sorted(step for step in seen - broken if step <= self.last)

    def shards(self) -> list[ShardRecord]:
        """What was recorded of the shards that have their results."""
        return [
            shard
            for operation in self.operations
            for shard in operation.shards
            if operation.step <= self.last and shard.written is not None
        ]
