"""The results of one message, taken together, where nothing unusual happens to them.

With small keys, most of a worker's time is the interpreter's work for each result. Most results are small sums that
complete their operations. Those take a short way here. All others take the way of Session. The outcome is the same.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Final

from psum.client.core.key_rounds import Part
from psum.client.core.running_operations import RunningOperations
from psum.client.core.send_window import SendWindow
from psum.client.core.ticket import State
from psum.v1 import aggregator_pb2 as pb
from psum.wire import MAX_SHARDS_PER_PAYLOAD, ShardRound, read_columns, spread, to_rows
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
        shards: pb.ShardRounds,
        payload: memoryview,
        now: float,
        others: Callable[[ShardRound, memoryview], None],
    ) -> None:
        """Handles the results of a message.

        Args:
            window: What was sent to the aggregator that they come from.
            shards: Which results they are.
            payload: Those that are in the message, one after the other.
            now: The time, in seconds.
            others: Handles a result that is not ordinary, with its piece of the payload. Also called for results that
                nobody waits for, in a message with payloads outside of it, so that these are taken in order.

        Raises:
            ProtocolError: The columns do not fit each other, or the payload has not the length that they say. Nothing
                has changed.
        """
        columns = read_columns(shards, MAX_SHARDS_PER_PAYLOAD)
        count = len(columns[0])
        ids, indices, rounds, _, sizes, *_ = [spread(column, count) for column in columns]
        lengths = list(sizes)
        if (total := sum(lengths)) != len(payload):
            raise ProtocolError(f"a payload of {len(payload)} bytes for shards with a total of {total} bytes")
        operations, outstanding = self._operations, window.outstanding
        usual, keeps_sums = operations.completes_plainly, self._keep_sums
        # Slices of bytes are copies, which do not keep the message.
        whole = payload.obj if type(payload.obj) is bytes else bytes(payload)
        end = before = len(whole) - len(payload)
        reader = BytesIO(whole)
        staged = window.scheduler.staged_divisor != 1
        counters = None
        released = received = 0
        sent: list[float] = []
        begun: list[float] = []
        outside = bool(shards.placed)
        pairs = zip(ids, indices, strict=True)
        rows: list[ShardRound] | None = None
        try:
            for number, (pair, round, length) in enumerate(zip(pairs, rounds, lengths, strict=True)):
                start, end = end, end + length
                part = outstanding.get(pair)
                if part is None or (ticket := part.ticket).round != round:
                    # It was under way when the operation failed, or had its result already.
                    if outside:
                        # The payload that follows the message for it must not be taken for the next result's.
                        if rows is None:
                            rows = to_rows(shards)
                        others(rows[number], payload[start - before : end - before])
                    continue
                target = ticket.target
                if (
                    not part.plain
                    or length != part.size
                    or target is None
                    or target.nbytes != length
                    or part.record is not None
                    or part.lease is not None
                    or ticket.borrows
                    or not usual
                ):
                    if rows is None:
                        rows = to_rows(shards)
                    others(rows[number], payload[start - before : end - before])
                    continue
                # Without a view of the target. NumPy's stubs say only from Python 3.12 on that arrays are buffers.
                reader.seek(start)
                reader.readinto(target)  # type: ignore[arg-type]
                key_rounds, key = part.rounds, ticket.key
                key_rounds.next_rounds[0] = round + 1
                if keeps_sums or key.keeps_sum:
                    key_rounds.sums[0] = whole[start:end]
                del outstanding[pair]
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
                key_rounds.running = None
                key_rounds.round += 1
                operations.finished.append((ticket, None))
                if key_rounds.waiting:
                    operations.run_next(key_rounds, now)
        finally:
            window.scheduler.under_way_bytes -= released
            if counters is not None:
                counters.received_bytes += received
                counters.exchange.observe_since(sent, now)
                counters.total.observe_since(begun, now)
