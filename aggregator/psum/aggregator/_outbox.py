"""What waits to be sent to one worker: the most urgent first, small results several to a message."""

import heapq
import itertools
import math
from collections import deque

from psum.v1 import aggregator_pb2 as pb
from psum.wire import BATCH_BYTES, encode


class Outbox:
    """The messages for one stream, in the order in which they are to be sent.

    Control messages go before results, in order of arrival. Results follow by urgency, equals in order of arrival. A
    result is either a whole message, made once for all workers, or a small payload that shares a message with others.
    """

    def __init__(self) -> None:
        self._control: deque[bytes] = deque()
        self._results: list[tuple[float, int, bytes | pb.ShardRound, memoryview | None, memoryview | None]] = []
        self.beside: list[memoryview] = []
        """What the message that was taken last announces: to be sent on the data connection right after it."""
        self._order = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._control or self._results)

    def __len__(self) -> int:
        return len(self._control) + len(self._results)

    def put_control(self, message: pb.ExchangeResponse) -> None:
        """Adds a message without payload."""
        self._control.append(message.SerializeToString())

    def put_message(self, priority: int, message: bytes) -> None:
        """Adds a result that is a whole message."""
        heapq.heappush(self._results, (-priority, next(self._order), message, None, None))

    def put_small(self, shard: pb.ShardRound, payload: memoryview, beside: memoryview | None = None) -> None:
        """Adds a result that may share its message with others, or is beside it."""
        heapq.heappush(self._results, (-shard.priority, next(self._order), shard, payload, beside))

    def put_last(self, message: pb.ExchangeResponse) -> None:
        """Adds a message without payload that is to follow all that is here now."""
        heapq.heappush(self._results, (math.inf, next(self._order), message.SerializeToString(), None, None))

    def take(self) -> bytes:
        """The next message to send; there must be one. What it announces is in `beside` afterwards."""
        self.beside = []
        if self._control:
            return self._control.popleft()
        _, _, first, payload, beside = heapq.heappop(self._results)
        if isinstance(first, bytes) or payload is None:
            assert isinstance(first, bytes)
            return first
        shards, payloads, size = [first], [payload], len(payload)
        if beside is not None:
            self.beside.append(beside)
        while self._results and not self.beside:
            _, _, shard, payload, beside = self._results[0]
            if payload is None or isinstance(shard, bytes) or size + len(payload) > BATCH_BYTES or beside is not None:
                break
            heapq.heappop(self._results)
            shards.append(shard)
            payloads.append(payload)
            size += len(payload)
        return encode(pb.ExchangeResponse(result=pb.Result(shards=shards)), *payloads)

    def clear(self) -> None:
        """Drops everything."""
        self._control.clear()
        self._results.clear()
