"""What waits to be sent to one worker: the most urgent first, small results several to a message.

It stays small even where the worker does not read. Of each shard there is one result at most, since a worker that
begins a round has that of the round before; and `crowded` says when its other messages have become so many that it
should not be heard before it has read some.
"""

import heapq
import itertools
import math
from collections import deque
from typing import Any, Final

from psum.v1 import aggregator_pb2 as pb
from psum.wire import BATCH_BYTES, encode

#: Most results in one message; some, as those of the root of a broadcast, have no bytes that would limit them.
_MAX_BATCH: Final = 1024

#: How much one message may announce that follows on the data connection, where an urgent result is behind it.
_BESIDE_BYTES: Final = 2 << 20

#: Messages without payload from which on an outbox is crowded.
_MAX_CONTROL: Final = 1000

#: A result and where it stands in line: urgency, order of arrival, key's id and shard, then the message or its parts.
_Entry = list[Any]


class Outbox:
    """The messages for one stream, in the order in which they are to be sent.

    Control messages go first, in order of arrival; then timings, so that each is there before the result that it tells
    of. Results follow by urgency, equals in order of arrival. A result is either a whole message, made once for all
    workers, or a small payload that shares a message with others.
    """

    def __init__(self) -> None:
        self._control: deque[bytes] = deque()
        self._timings: dict[tuple[int, int], pb.Timing] = {}
        """By (key's id, shard)."""
        self._results: list[_Entry] = []
        self._by_place: dict[tuple[int, int], _Entry] = {}
        self.beside: list[memoryview] = []
        """What the message that was taken last announces: to be sent on the data connection right after it."""
        self._order = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._control or self._timings or self._results)

    def __len__(self) -> int:
        return len(self._control) + len(self._timings) + len(self._results)

    def put_control(self, message: pb.ExchangeResponse) -> None:
        """Adds a message without payload."""
        self._control.append(message.SerializeToString())

    def put_timing(self, timing: pb.Timing) -> None:
        """Adds what is to be told of a round ahead of its result, in place of any other of its key and shard."""
        self._timings[timing.id, timing.shard] = timing

    @property
    def crowded(self) -> bool:
        """Whether the worker has left so much unread that it should not be given reason to be sent more."""
        return len(self._control) > _MAX_CONTROL

    def put_message(self, place: tuple[int, int], priority: int, message: bytes) -> None:
        """Adds a result that is a whole message, in place of any other of this (key's id, shard)."""
        self._put(place, priority, message, None, None)

    def put_small(
        self, place: tuple[int, int], shard: pb.ShardRound, payload: memoryview, beside: memoryview | None = None
    ) -> None:
        """Adds a result that may share its message with others, or is beside it, in place of any other of this
        (key's id, shard)."""
        self._put(place, shard.priority, shard, payload, beside)

    def put_last(self, message: pb.ExchangeResponse) -> None:
        """Adds a message without payload that is to follow all that is here now."""
        heapq.heappush(self._results, [math.inf, next(self._order), None, message.SerializeToString(), None, None])

    def take(self) -> bytes:
        """The next message to send; there must be one. What it announces is in `beside` afterwards."""
        self.beside = []
        if self._control:
            return self._control.popleft()
        if self._timings:
            places = list(itertools.islice(self._timings, _MAX_BATCH))
            timings = [self._timings.pop(place) for place in places]
            return pb.ExchangeResponse(timings=pb.Timings(timings=timings)).SerializeToString()
        first, payload, beside = self._pop()
        if isinstance(first, bytes) or payload is None:
            assert isinstance(first, bytes)
            return first
        response, payloads, size, size_beside = pb.ExchangeResponse(), [payload], len(payload), 0
        shards = response.result.shards
        shards.append(first)
        if beside is not None:
            self.beside.append(beside)
            size_beside = len(beside)
        while self._results and len(shards) < _MAX_BATCH:
            *_, shard, payload, beside = self._results[0]
            if payload is None or isinstance(shard, bytes) or size + len(payload) > BATCH_BYTES:
                break
            if beside is not None:
                if size_beside + len(beside) > _BESIDE_BYTES:
                    break
                self.beside.append(beside)
                size_beside += len(beside)
            self._pop()
            shards.append(shard)
            payloads.append(payload)
            size += len(payload)
        return encode(response, *payloads)

    def clear(self) -> None:
        """Drops everything."""
        self._control.clear()
        self._timings.clear()
        self._results.clear()
        self._by_place.clear()

    def _put(
        self,
        place: tuple[int, int],
        priority: int,
        item: bytes | pb.ShardRound,
        payload: memoryview | None,
        beside: memoryview | None,
    ) -> None:
        if (entry := self._by_place.get(place)) is not None:
            # It keeps its place in the line.
            entry[3:] = item, payload, beside
            return
        self._by_place[place] = entry = [-priority, next(self._order), place, item, payload, beside]
        heapq.heappush(self._results, entry)

    def _pop(self) -> tuple[bytes | pb.ShardRound, memoryview | None, memoryview | None]:
        _, _, place, item, payload, beside = heapq.heappop(self._results)
        if place is not None:
            del self._by_place[place]
        return item, payload, beside
