"""The results of one message, taken together, where nothing unusual happens to them.

With small keys, most of a worker's time is the interpreter's work for each result. Most results are small sums that
complete their operations. Those take a short way here. All others take the way of Session. The outcome is the same.
"""

from collections.abc import Callable, Sequence
from typing import Final

from psum.client.core.buffers import flat
from psum.client.core.kept_sums import KEPT_VIEW_BYTES
from psum.client.core.key_rounds import Part
from psum.client.core.running_operations import RunningOperations
from psum.client.core.send_window import SendWindow
from psum.client.core.ticket import State
from psum.wire import ShardRound
from psum.wire.errors import ProtocolError

_FINISHED: Final = State.FINISHED


class SmallResults:
    """Takes the results of one message together. It has no state of its own.

    Args:
        operations: The operations of the worker.
        keep_sums: Whether the last sum of each shard is kept.
    """

    def __init__(self, operations: RunningOperations, *, keep_sums: bool) -> None:
        self._operations = operations
        self._keep_sums = keep_sums

    def take(
        self,
        window: SendWindow[Part],
        rows: Sequence[ShardRound],
        payload: memoryview,
        now: float,
        others: Callable[[ShardRound, memoryview], None],
    ) -> None:
        """Handles the results of a message.

        Args:
            window: What was sent to the aggregator that they come from.
            rows: Which results they are.
            payload: Those that are in the message, one after the other.
            now: The time, in seconds.
            others: Handles a result that is not ordinary, with its piece of the payload.

        Raises:
            ProtocolError: The payload has not the length that the rows say. Nothing has changed.
        """
        if (total := sum([row[4] for row in rows])) != len(payload):
            raise ProtocolError(f"a payload of {len(payload)} bytes for shards with a total of {total} bytes")
        operations, outstanding = self._operations, window.outstanding
        usual = operations.completes_plainly
        # Slices of bytes are copies, which do not keep the message.
        whole = payload.obj if type(payload.obj) is bytes else bytes(payload)
        end = before = len(whole) - len(payload)
        staged = window.scheduler.staged_divisor != 1
        counters = None
        released = received = 0
        sent: list[float] = []
        begun: list[float] = []
        try:
            for row in rows:
                key_id, index, round, _, length, _, outside_size, _, _ = row
                start, end = end, end + length
                part = outstanding.get((key_id, index))
                if part is None or (ticket := part.ticket).round != round:
                    # It was under way when the operation failed, or had its result already.
                    continue
                shard, key, target = part.shard, ticket.key, ticket.target
                if not (
                    usual
                    and key.plain
                    and length == shard.size
                    and 0 < length < KEPT_VIEW_BYTES
                    and not outside_size
                    and ticket.pending == 1
                    and target is not None
                    and part.record is None
                    and part.lease is None
                    and not ticket.borrows
                ):
                    others(row, payload[start - before : end - before])
                    continue
                value = whole[start:end]
                flat(target)[shard.start : shard.stop] = value
                rounds = part.rounds
                rounds.next_rounds[index] = round + 1
                if self._keep_sums or key.keeps_sum:
                    rounds.sums[index] = value
                del outstanding[key_id, index]
                if staged:
                    window.credit(part)
                elif not part.credited:
                    part.credited = True
                    released += length
                counters = key.counters
                sent.append(part.sent)
                begun.append(operations.since.pop(ticket))
                received += length
                ticket.pending = 0
                ticket.state = _FINISHED
                rounds.running = None
                rounds.round += 1
                operations.finished.append((ticket, None))
                if rounds.waiting:
                    operations.run_next(rounds, now)
        finally:
            window.scheduler.under_way_bytes -= released
            if counters is not None:
                counters.received_bytes += received
                counters.exchange.observe_since(sent, now)
                counters.total.observe_since(begun, now)
