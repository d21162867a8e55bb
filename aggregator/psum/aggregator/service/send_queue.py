"""What waits to be sent to one worker: the most urgent first, several small results in one message.

The queue stays small even if the worker does not read. It has at most one result of each shard, because a worker that
begins a round has the result of the previous one. `crowded` says when there are so many other messages that nothing
should be read from the worker until it has read some.
"""

import heapq
import itertools
import math
from collections import deque
from typing import Any, Final

from psum.aggregator.sums.results import Results, joined_message
from psum.v1 import aggregator_pb2 as pb
from psum.wire import BATCH_BYTES, OUTSIDE_BATCH_BYTES

#: The most results in one message. Results without bytes, as for the root of a broadcast, are limited by nothing else.
MAX_BATCH: Final = 1024

#: A queue with more messages without payload than this is crowded.
_MAX_CONTROL: Final = 1000

#: What the heap sorts: urgency, order of arrival, and the results.
_Entry = list[Any]


class SendQueue:
    """The messages for one stream, in the order in which they are sent.

    Control messages go first, in order of arrival. Timings go next, so that each arrives before its result. Results
    follow by urgency, and equally urgent ones in order of arrival. Results that came together stay together, in a
    message that is made once for all workers; if they are few, other results travel with them.
    """

    def __init__(self) -> None:
        self._control: deque[bytes] = deque()
        self._timings: dict[tuple[int, int], pb.Timing] = {}
        """By (key's id, shard)."""
        self._results: list[_Entry] = []
        self._by_shard: dict[tuple[int, int], _Entry] = {}
        self.following: list[memoryview] = []
        """The payloads that must follow the last message on the data connection."""
        self.following_bytes = OUTSIDE_BATCH_BYTES
        """How many bytes of payloads may follow one message, if there are several."""
        self._order = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._control or self._timings or self._results)

    def __len__(self) -> int:
        return len(self._control) + len(self._timings) + len(self._results)

    def put_control(self, message: pb.ExchangeResponse) -> None:
        """Adds a message without payload."""
        self._control.append(message.SerializeToString())

    def put_timing(self, timing: pb.Timing) -> None:
        """Adds the timing of a round, which goes ahead of its result. It replaces an earlier one of the same shard."""
        self._timings[timing.id, timing.shard] = timing

    @property
    def crowded(self) -> bool:
        """Whether the worker has left so many messages unread that it should not cause more."""
        return len(self._control) > _MAX_CONTROL

    def put(self, results: Results) -> None:
        """Adds results. Each replaces an earlier one of the same (key's id, shard)."""
        if results.repeats or not self._by_shard.keys().isdisjoint(results.shard_ids):
            for number, shard_id in enumerate(results.shard_ids):
                single = results.only(number) if len(results.shard_ids) > 1 else results
                if (entry := self._by_shard.get(shard_id)) is not None:
                    # It keeps its place in the queue.
                    entry[2] = entry[2].replaced(shard_id, single)
                else:
                    self._add(single)
        else:
            self._add(results)

    def put_last(self, message: pb.ExchangeResponse) -> None:
        """Adds a message without payload that is sent after everything that is here now."""
        last = Results((), priority=-math.inf, message=message.SerializeToString())
        heapq.heappush(self._results, [math.inf, next(self._order), last])

    def get(self) -> bytes:
        """The next message to send; there must be one. `following` then has the payloads that must follow it."""
        self.following = []
        if self._control:
            return self._control.popleft()
        if self._timings:
            shard_ids = list(itertools.islice(self._timings, MAX_BATCH))
            timings = [self._timings.pop(shard_id) for shard_id in shard_ids]
            return pb.ExchangeResponse(timings=pb.Timings(timings=timings)).SerializeToString()
        batch = [first := self._pop()]
        count, size, size_following = len(first.shard_ids), first.size, first.size_following
        while self._results and not first.alone:
            upcoming: Results = self._results[0][2]
            count += len(upcoming.shard_ids)
            size += upcoming.size
            size_following += upcoming.size_following
            if upcoming.alone or count > MAX_BATCH or size > BATCH_BYTES or size_following > self.following_bytes:
                break
            batch.append(self._pop())
        if len(batch) == 1:
            self.following = list(first.following)
            return first.message()
        self.following = [payload for results in batch for payload in results.following]
        return joined_message(batch)

    def clear(self) -> None:
        """Removes everything."""
        self._control.clear()
        self.clear_results()

    def clear_results(self) -> None:
        """Removes the results and their timings."""
        self._timings.clear()
        self._results.clear()
        self._by_shard.clear()

    def _add(self, results: Results) -> None:
        entry: _Entry = [-results.priority, next(self._order), results]
        self._by_shard.update(dict.fromkeys(results.shard_ids, entry))
        heapq.heappush(self._results, entry)

    def _pop(self) -> Results:
        results: Results = heapq.heappop(self._results)[2]
        for shard_id in results.shard_ids:
            del self._by_shard[shard_id]
        return results
