"""The keys of a group on their way to the owners of shards: which are declared, and what is sent of each.

An **uplink** is the way to one aggregator: to an owner of shards, or to a relay further up, through which the way to
all owners leads.
"""

import time
from collections.abc import Callable, Sequence

from psum.aggregator.core.key import Key
from psum.aggregator.core.round import Phase
from psum.aggregator.relay.core.forwarded import ForwardedKey, ForwardedShard
from psum.aggregator.relay.core.wanted_sums import WantedSums
from psum.client.core.counters import Counters
from psum.client.core.operation import Operation
from psum.client.core.send_window import SendWindow
from psum.v1 import aggregator_pb2 as pb


class UplinkKeys:
    """The keys of one relay's group, as its job has them, and a window of what is under way on each uplink.

    Args:
        addresses: The address of each uplink.
        routes: Which uplink leads to each owner, by the owner's index in the workers' list.
        credit_bytes: Bytes that may be under way on one uplink.
        to_relay: Whether the only uplink leads to another relay.
        clock: The time now, as the methods are given it.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        routes: Sequence[int],
        *,
        credit_bytes: int,
        to_relay: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.addresses = tuple(addresses)
        self.counters = Counters()
        self.keys: dict[int, ForwardedKey] = {}
        """The keys by id."""
        self.sent_bytes = [0] * len(self.addresses)
        """Payload forwarded on each uplink; what was sent again counts once."""
        self._routes = dict(enumerate(routes))
        self._to_relay = to_relay
        self._clock = clock
        self.windows = [self._make_window(credit_bytes) for _ in addresses]
        """What is sent on each uplink."""
        self.wanted = WantedSums(self.keys, self.windows, self.counters)
        """Sums that owners asked for and that this relay does not keep."""
        self.lost: set[int] = set()
        """The uplinks without an open stream, as the shell last said. Only what ends before them depends on it."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {', '.join(self.addresses)} keys={len(self.keys)}>"

    def learn(self, key: Key, owners: dict[int, int], first_owner: int, member: int) -> ForwardedKey:
        """Notes that a member of the group has declared a key."""
        forwarded = self.keys.get(key.id)
        if forwarded is None:
            counters = self.counters.operations[Operation.BROADCAST if key.broadcast else Operation.SUM]
            forwarded = self.keys[key.id] = ForwardedKey(key, owners, first_owner, self._routes, counters)
        forwarded.declared_by.add(member)
        return forwarded

    def declare(self, forwarded: ForwardedKey) -> None:
        """Declares a key to its owners. All members of the group have declared it, so the group's rounds are known."""
        forwarded.declared = True
        forwarded.rounds = {index: shard.round for index, shard in forwarded.key.shards.items()}
        self.wanted.declared(forwarded)
        self._declare(forwarded)

    def take_back(self, forwarded: ForwardedKey) -> bool:
        """Notes of which shards the group has lost the last sum, which the owners were told that it has.

        Only one member had it, a relay, and that has ended before its own members had it.

        Returns:
            Whether there are any. Then the owners must be told again of the key.
        """
        if not forwarded.declared:
            return False
        shards = forwarded.key.shards
        # While a result is on its way to where workers read it, the group's round is one behind, but not gathering.
        lost = [
            index
            for index, round in forwarded.rounds.items()
            if shards[index].round < round and shards[index].phase is Phase.GATHERING
        ]
        for index in lost:
            forwarded.rounds[index] = shards[index].round
            forwarded.sums.pop(index, None)
            self.wanted.forget(forwarded.key.id, index)
        return bool(lost)

    def forward(
        self,
        key: Key,
        index: int,
        round: int,
        priority: int,
        value: memoryview | None,
        *,
        timed: bool,
        contributors: int = 0,
    ) -> None:
        """Sends the group's contribution to a round.

        Args:
            key: The key; it has not failed.
            index: The shard's number within it.
            round: The round.
            priority: How urgent it is.
            value: The group's sum, or the root's value, unchanged until the result has arrived; None: the root of the
                broadcast is in another group.
            timed: Whether a rank of the group asked how long the round waited.
            contributors: In an elastic job, how many ranks the sum counts.
        """
        forwarded = self.keys[key.id]
        if not forwarded.declared:
            # A member contributed without declaring the key on its stream.
            self.declare(forwarded)
        shard = forwarded.shards.get(index)
        if shard is None:
            shard = forwarded.shards[index] = ForwardedShard(forwarded, index)
        shard.begin(round, priority, value, timed=timed, now=self._clock(), contributors=contributors)
        uplink = forwarded.route[index]
        self.sent_bytes[uplink] += shard.size
        self.windows[uplink].add(shard)

    def keep(self, key: Key, index: int, round: int, memory: memoryview) -> None:
        """Keeps a result in the memory from which workers read it, rather than as it came."""
        forwarded = self.keys.get(key.id)
        if forwarded is not None and forwarded.rounds.get(index) == round + 1 and index in forwarded.sums:
            forwarded.keep(index, memory)

    def fail_key(self, key: Key, abort: pb.Abort, *, known: bool) -> None:
        """Ends a key, which has failed in the group.

        Args:
            key: The key.
            abort: What the owners are told.
            known: Whether they know it. Then only an owner that is started again is told.
        """
        forwarded = self.keys.get(key.id)
        if forwarded is None or forwarded.failed:
            return
        self._end(forwarded)
        forwarded.abort = abort
        if not forwarded.declared:
            forwarded.declared = True
            first = {shard.index: shard.round for shard in key.declared.shards}
            forwarded.rounds = {index: first[index] for index in forwarded.owners}
            if not known:
                self._declare(forwarded)
        if not known:
            for uplink in forwarded.uplinks:
                self.windows[uplink].aborts.append(abort)

    def finishes(self, key_id: int, index: int, round: int) -> bool:
        """Whether the owner of a shard is there and takes a contribution to this round: it does not end before that."""
        forwarded = self.keys.get(key_id)
        if forwarded is None:
            return True
        if forwarded.route[index] in self.lost:
            return False
        still_open = self.windows[forwarded.route[index]].still_open
        return still_open is None or (key_id, index, round) in still_open

    def outstanding_shards(self, aggregator: int) -> int:
        """How many shards were sent on an uplink and have no result yet."""
        return len(self.windows[aggregator].outstanding)

    def check(self) -> None:
        """Asserts the invariants; for tests."""
        for uplink, window in enumerate(self.windows):
            under_way = sum(shard.size for shard in window.outstanding.values() if not shard.credited)
            assert window.scheduler.under_way_bytes == under_way
            for (key_id, index), shard in window.outstanding.items():
                forwarded = self.keys[key_id]
                assert not forwarded.failed
                assert forwarded.route[index] == uplink
                assert forwarded.rounds[index] == shard.round
        self.wanted.check()

    def _end(self, forwarded: ForwardedKey) -> None:
        """Lets go of what is under way of a key, and of what is kept."""
        forwarded.failed = True
        forwarded.sums.clear()
        for index, route in forwarded.route.items():
            window, which = self.windows[route], (forwarded.key.id, index)
            if (shard := window.outstanding.pop(which, None)) is not None:
                window.credit(shard)
            self.wanted.forget(*which)
        for shard in forwarded.shards.values():
            # An entry may stay in a queue. The memory must not.
            shard.value = None

    def _release_all(self) -> None:
        """Lets go of all keys, and of what was to be sent of them."""
        for forwarded in self.keys.values():
            forwarded.failed = True
        self.keys.clear()
        self.wanted.clear()
        for window in self.windows:
            window.outstanding.clear()
            window.postponed.clear()
            window.scheduler.clear()
            window.scheduler.forget_credit()
            window.restores.clear()

    def _make_window(self, credit_bytes: int) -> SendWindow[ForwardedShard]:
        return SendWindow(credit_bytes, self.counters, self._clock)

    def _declare(self, forwarded: ForwardedKey) -> None:
        for uplink in forwarded.uplinks:
            self.windows[uplink].declarations.append(forwarded.declaration(uplink, to_relay=self._to_relay))

    def _leads_to(self, uplink: int, key_id: int, index: int) -> bool:
        forwarded = self.keys.get(key_id)
        return forwarded is not None and forwarded.route.get(index) == uplink
