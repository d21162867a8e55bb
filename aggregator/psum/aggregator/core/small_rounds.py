"""The contributions of one message, taken together, where nothing unusual happens to them.

With small shards, most of an aggregator's time is the interpreter's work for each contribution. A training mostly sends
the next contribution to each of its sums. Those take a short way here. Everything else takes the way of JobRounds, as
does a contribution that becomes unusual by what came before it in its message. The outcome is the same.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Final, cast

from psum.aggregator.core.actions import Action, Report, SumTogether
from psum.aggregator.core.counters import JobCounters
from psum.aggregator.core.held import Held
from psum.aggregator.core.job_rounds import JobRounds
from psum.aggregator.core.layouts import Layout, Layouts, Message, Row
from psum.aggregator.core.membership import Membership
from psum.aggregator.core.memory import JobMemory
from psum.aggregator.core.open_shards import OpenShards
from psum.aggregator.core.round import ShardRounds, take_each
from psum.v1 import aggregator_pb2 as pb
from psum.wire import BATCH_BYTES, MAX_SHARDS_PER_PAYLOAD, ShardRound, read_columns, spread

#: After so many seconds of waiting for others, contributions are copied out of their message, if those that still wait
#: are not most of it: no budget counts the others. Otherwise it is looked at again after the same time.
MESSAGE_HOLD_SECONDS: Final = 0.1

#: The most shards and bytes that are summed together: they travel in one message.
MOST_SHARDS: Final = 1024
MOST_BYTES: Final = BATCH_BYTES


class SmallRounds:
    """Takes the contributions of one message together.

    Args:
        rounds: The job's keys.
        members: The job's workers.
        open_shards: The shards whose round is incomplete.
        memory: The bytes that the keys reserve and hold.
        counters: Where contributions are counted.
    """

    def __init__(
        self,
        rounds: JobRounds,
        members: Membership,
        open_shards: OpenShards,
        memory: JobMemory,
        counters: JobCounters,
    ) -> None:
        self._rounds = rounds
        self._workers = members.workers
        self._open_shards = open_shards.shards
        self._memory = memory
        self._counters = counters.sum
        self._layouts = Layouts(rounds.keys)
        self._recent: deque[tuple[float, int, Layout]] = deque()
        """When messages came that a layout may still hold, with the member and the layout, the oldest first."""

    def contribute(
        self,
        rank: int,
        shards: pb.ShardRounds,
        payload: memoryview,
        now: float,
        message_bytes: int,
        actions: list[Action],
    ) -> None:
        """Does what JobRounds.contribute does for each contribution of a message, if the rounds `take_together`.

        Contributions stay views of the message: see `leave_messages`.

        Args:
            rank: The worker.
            shards: The shards and their rounds. All payloads are in the message, and it asks for no timings.
            payload: Their values, one after the other.
            now: The time.
            message_bytes: How many bytes a view of the payload keeps alive.
            actions: Receives the actions that follow, also if an error is raised: what came before it counts.

        Raises:
            ProtocolError: As JobRounds.contribute; or the columns or the payload have not the length that they should.
        """
        ids, indices, *others = read_columns(shards, MAX_SHARDS_PER_PAYLOAD)
        layout, count = self._layouts.find(ids, indices, others[2]), len(ids)
        if 2 * len(payload) < message_bytes:
            # The rest of the message may be of any size.
            payload = memoryview(bytes(payload))
        pieces = layout.split(payload)
        rounds, priorities = (list(spread(column, count)) for column in others[:2])
        contributions = zip(layout.shards, rounds, priorities, pieces, strict=True)
        self.leave_messages(now)
        if layout.any_usual:
            if (earlier := layout.messages.get(rank)) is not None:
                # Some of it may still wait, if its worker sent the same again or too early.
                for shard in _waiting(rank, layout, earlier):
                    shard.copy(rank)
            layout.messages[rank] = Message(now, pieces, payload)
            self._recent.append((now, rank, layout))
        begin, failed = 0, False
        while begin < count:
            # What is unusual may have failed a key.
            taken = [] if failed else take_each(rank, now, contributions)
            if taken:
                self._note(rank, layout, begin, rounds, taken, now, actions)
                begin += len(taken)
            if begin < count:
                key_id, index = layout.pairs[begin]
                row = ShardRound(key_id, index, rounds[begin], priorities[begin], len(pieces[begin]))
                following = self._rounds.contribute(rank, row, pieces[begin], now, message_bytes)
                failed = failed or any(isinstance(action, Report) for action in following)
                actions += following
                begin += 1

    def _note(
        self,
        rank: int,
        layout: Layout,
        begin: int,
        rounds: Sequence[int],
        taken: Sequence[bool | None],
        now: float,
        actions: list[Action],
    ) -> None:
        """Notes what was taken of a message.

        Args:
            rank: The worker.
            layout: The message's layout.
            begin: Where in the message it begins.
            rounds: The rounds of all contributions of the message.
            taken: What `take_each` returned.
            now: The time.
            actions: Receives the actions that follow.
        """
        worker, part = self._workers[rank], slice(begin, begin + len(taken))
        sizes, pairs, rows = layout.sizes[part], layout.pairs[part], cast(list[Row], layout.rows[part])
        size = sum(sizes)
        worker.contributed = True
        self._counters.contributions += len(taken)
        self._counters.received_bytes += size
        self._memory.held_bytes += size - sum(compress(sizes, taken))
        waits = [each is None for each in taken]
        open_shards = self._open_shards
        if any(waits):
            all_wait = all(waits)
            waiting = rows if all_wait else list(compress(rows, waits))
            its_rounds = rounds[part] if all_wait else list(compress(rounds[part], waits))
            open_shards.update(zip(compress(pairs, waits), [(key, shard) for key, _, shard in waiting], strict=True))
            worker.uncredited.append(Held(now, waiting, its_rounds, in_message=True))
            if all_wait:
                return
        together: SumTogether | None = None
        room = 0
        waited: list[float] = []
        for row, pair, size, wait in zip(rows, pairs, sizes, waits, strict=True):
            if wait:
                continue
            shard = row[2]
            open_shards.pop(pair, None)
            waited.append(shard.since or now)
            room -= size
            if (
                together is None
                or room < 0
                or together.roster is not shard.roster
                or len(together.shards) == MOST_SHARDS
            ):
                together = SumTogether(shard.roster, [], layout.messages)
                actions.append(together)
                room = MOST_BYTES - size
            together.shards.append(row)
        self._counters.waiting.observe_since(waited, now)

    def leave_messages(self, now: float) -> None:
        """Copies the contributions that have waited for long, so that their messages can be released.

        A message of which most still waits stays: it takes less memory than copies, and can be added as it is.
        """
        recent = self._recent
        while recent and now - recent[0][0] >= MESSAGE_HOLD_SECONDS:
            since, rank, layout = recent.popleft()
            message = layout.messages.get(rank)
            if message is None or message.since > since:
                # All were summed. Contributions of a message that came later are not copied before their time.
                continue
            waiting = _waiting(rank, layout, message)
            if 2 * sum([len(shard.contributions[rank]) for shard in waiting]) > len(message.payload):
                recent.append((now, rank, layout))
                continue
            for shard in waiting:
                shard.copy(rank)
            del layout.messages[rank]

    def clear(self) -> None:
        """Forgets all messages: no contribution waits any more."""
        for _, rank, layout in self._recent:
            layout.messages.pop(rank, None)
        self._recent.clear()

    def summed(self, action: SumTogether, results: Iterable[object], now: float) -> None:
        """Takes the sums that a SumTogether asked for. The caller delivers them.

        Args:
            action: Only shards of keys that have not failed.
            results: The sum of each shard.
            now: The time, by the clock of `contribute`.
        """
        others = len(action.roster.members) - 1
        self._rounds.completed += len(action.shards)
        self._counters.duration.observe_since([shard.since or now for _, _, shard in action.shards], now)
        released = 0
        for (key, index, shard), result in zip(action.shards, results, strict=True):
            released += key.sizes[index]
            shard.complete(result)
        self._memory.held_bytes -= released * others
        messages = action.messages
        if any(len(message.pieces) == len(action.shards) for message in messages.values()):
            # These were all contributions with this layout. Otherwise others may still wait.
            messages.clear()


def _waiting(rank: int, layout: Layout, message: Message) -> list[ShardRounds[object]]:
    """The shards for which the contribution in a member's message still waits."""
    return [
        shard
        for shard, piece in zip(layout.shards, message.pieces, strict=True)
        if shard is not None and shard.contributions.get(rank) is piece
    ]
