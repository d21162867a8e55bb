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

from psum.aggregator.sums.results import Results, result_message
from psum.v1 import aggregator_pb2 as pb
from psum.wire import BATCH_BYTES, BESIDE_BYTES

#: Most results in one message; some, as those of the root of a broadcast, have no bytes that would limit them.
MAX_BATCH: Final = 1024

#: Messages without payload from which on an outbox is crowded.
_MAX_CONTROL: Final = 1000

#: Results and where they stand in line: urgency, order of arrival, and they themselves.
_Entry = list[Any]


class SendQueue:
    """The messages for one stream, in the order in which they are to be sent.

    Control messages go first, in order of arrival; then timings, so that each is there before the result that it tells
    of. Results follow by urgency, equals in order of arrival. Those that came together stay together, in a message that
    is made once for all workers; where they are few, other results travel with them.
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

    def put(self, results: Results) -> None:
        """Adds results, each in place of any other of its (key's id, shard)."""
        if results.repeats or not self._by_place.keys().isdisjoint(results.places):
            for number, place in enumerate(results.places):
                single = results.only(number) if len(results.places) > 1 else results
                if (entry := self._by_place.get(place)) is not None:
                    # It keeps its place in the line.
                    entry[2] = entry[2].replaced(place, single)
                else:
                    self._add(single)
        else:
            self._add(results)

    def put_last(self, message: pb.ExchangeResponse) -> None:
        """Adds a message without payload that is to follow all that is here now."""
        last = Results((), priority=-math.inf, message=message.SerializeToString())
        heapq.heappush(self._results, [math.inf, next(self._order), last])

    def take(self) -> bytes:
        """The next message to send; there must be one. What it announces is in `beside` afterwards."""
        self.beside = []
        if self._control:
            return self._control.popleft()
        if self._timings:
            places = list(itertools.islice(self._timings, MAX_BATCH))
            timings = [self._timings.pop(place) for place in places]
            return pb.ExchangeResponse(timings=pb.Timings(timings=timings)).SerializeToString()
        batch = [first := self._pop()]
        count, size, size_beside = len(first.rows), first.size, first.size_beside
        while self._results and not first.alone:
            following: Results = self._results[0][2]
            count += len(following.rows)
            size += following.size
            size_beside += following.size_beside
            if following.alone or count > MAX_BATCH or size > BATCH_BYTES or size_beside > BESIDE_BYTES:
                break
            batch.append(self._pop())
        if len(batch) == 1:
            self.beside = list(first.beside)
            return first.message()
        self.beside = [payload for results in batch for payload in results.beside]
        return result_message(
            [row for results in batch for row in results.rows],
            [payload for results in batch for payload in results.payloads],
        )

    def clear(self) -> None:
        """Drops everything."""
        self._control.clear()
        self._timings.clear()
        self._results.clear()
        self._by_place.clear()

    def _add(self, results: Results) -> None:
        entry: _Entry = [-results.priority, next(self._order), results]
        self._by_place.update(dict.fromkeys(results.places, entry))
        heapq.heappush(self._results, entry)

    def _pop(self) -> Results:
        results: Results = heapq.heappop(self._results)[2]
        for place in results.places:
            del self._by_place[place]
        return results
