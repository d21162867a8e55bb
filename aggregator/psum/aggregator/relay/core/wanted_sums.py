"""The sums of earlier rounds that owners ask a relay for, because they were started again: some rank lacks them.

The relay keeps the last sum of each shard as long as it lives. If it was started again itself, a rank of its group must
give the sum back.
"""

from collections.abc import Iterator, Mapping, Sequence

from psum.aggregator.relay.core.forwarded import ForwardedKey, ForwardedShard
from psum.client.core.counters import Counters
from psum.client.core.send_window import SendWindow
from psum.wire import ShardRound


class WantedSums:
    """What owners have asked for and this relay does not keep. It sends what there is.

    Args:
        keys: The keys by id; a view of the uplink's dictionary.
        windows: What is sent on each uplink.
        counters: Count what was given back.
    """

    def __init__(
        self, keys: Mapping[int, ForwardedKey], windows: Sequence[SendWindow[ForwardedShard]], counters: Counters
    ) -> None:
        self._rows: dict[tuple[int, int], ShardRound] = {}
        """By (key's id, shard)."""
        self._early: dict[tuple[int, int], tuple[ShardRound, bytes]] = {}
        """The sums of keys that the owners are not told of yet, by (key's id, shard)."""
        self._keys = keys
        self._windows = windows
        self._counters = counters

    def __iter__(self) -> Iterator[ShardRound]:
        """What some rank of the group must give back."""
        return iter(self._rows.values())

    def __contains__(self, which: tuple[int, int]) -> bool:
        """Whether a rank of the group must give back the last sum of a shard of a key."""
        return which in self._rows

    def ask(self, aggregator: int, row: ShardRound) -> None:
        """Takes what an owner asks for."""
        forwarded = self._keys.get(row.id)
        if forwarded is None or forwarded.failed or forwarded.route.get(row.shard) != aggregator:
            return
        if forwarded.rounds.get(row.shard) != row.round + 1:
            # All ranks have contributed to a later round since it asked.
            return
        if row.shard in forwarded.sums:
            self._restore(forwarded, row)
        else:
            self._rows[row.id, row.shard] = row

    def give_back(self, key_id: int, index: int, round: int, total: memoryview, contributors: int = 0) -> None:
        """Takes the sum of a round from a rank of the group, for an owner that may ask for it or has asked.

        The group may have asked for it itself before all its ranks were back. Then no owner knows of the key, and the
        rank is not asked again: the sum is kept until the owners are told.

        Args:
            key_id: The key's id.
            index: The shard's number within it.
            round: The round.
            total: The sum.
            contributors: In an elastic job, how many ranks it counts; 0: the nominal number.
        """
        forwarded = self._keys.get(key_id)
        if forwarded is None or forwarded.failed or len(total) != forwarded.key.sizes.get(index):
            return
        if not forwarded.declared:
            early = ShardRound(key_id, index, round, length=len(total), contributors=contributors)
            self._early[key_id, index] = early, bytes(total)
            return
        if forwarded.rounds[index] != round + 1 or index in forwarded.sums:
            return
        forwarded.sums[index] = bytes(total)
        forwarded.count(index, contributors)
        if (row := self._rows.pop((key_id, index), None)) is not None:
            self._restore(forwarded, row)

    def declared(self, forwarded: ForwardedKey) -> None:
        """Notes that the owners are told of a key, and at which round each shard is."""
        for index in forwarded.rounds:
            if (early := self._early.pop((forwarded.key.id, index), None)) is not None:
                row, total = early
                self.give_back(row.id, index, row.round, memoryview(total), row.contributors)

    def forget(self, key_id: int, index: int) -> None:
        """Notes that nobody wants the last sum of a shard any more."""
        self._rows.pop((key_id, index), None)
        self._early.pop((key_id, index), None)

    def clear(self) -> None:
        """Forgets everything that was asked for."""
        self._rows.clear()
        self._early.clear()

    def reopened(self, aggregator: int) -> None:
        """Notes that an owner has another stream, on which it asks again if it needs an answer still."""
        for key_id, index in list(self._rows):
            if self._keys[key_id].route[index] == aggregator:
                del self._rows[key_id, index]

    def check(self) -> None:
        """Asserts the invariants; for tests."""
        for key_id, index in self._rows:
            assert index not in self._keys[key_id].sums
        for key_id, _ in self._early:
            assert not self._keys[key_id].declared
            assert not self._keys[key_id].failed

    def _restore(self, forwarded: ForwardedKey, row: ShardRound) -> None:
        total = forwarded.sums[row.shard]
        self._counters.restores += 1
        contributors = forwarded.contributors.get(row.shard, 0)
        row = ShardRound(row.id, row.shard, row.round, length=len(total), contributors=contributors)
        self._windows[forwarded.route[row.shard]].restores.append((row, total))
