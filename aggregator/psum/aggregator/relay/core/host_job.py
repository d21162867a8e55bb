"""The job of a relay's group: its rounds gather the group's contributions, and forward their sum.

It is a Job whose rounds have one step more. When all ranks of the group have contributed, the shell makes the sum of
their contributions, as for any job, and passes it to `forward`. The uplink sends it to the shard's owner. When the
owner's result has come, `heard` returns a Sum action of this one payload (`relayed`): the shell writes it where workers
read it, and calls `summed`, which delivers it.

    contribute → Sum → forward(…) → [the owner] → heard() → Sum(relayed) → summed(…) → Deliver

The shell carries out ConnectUplinks, ReopenUplinks, SendUplinks, LeaveUplinks and PartUplinks; calls `heard` after the
uplink has handled messages; and `parted` when every owner has said farewell.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

from psum.aggregator.core.actions import (
    Action,
    ConnectUplinks,
    LeaveUplinks,
    PartUplinks,
    ReopenUplinks,
    ReturnCredit,
    SendUplinks,
    Sum,
    Warn,
)
from psum.aggregator.core.job import Job
from psum.aggregator.core.key import Key
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.round import Phase, ShardRounds
from psum.aggregator.core.worker import Worker
from psum.aggregator.relay.core import introduction
from psum.aggregator.relay.core.asked_ranks import AskedRanks
from psum.aggregator.relay.core.events import Arrived, Event, Faulted, Noticed
from psum.aggregator.relay.core.forwarded import ForwardedKey, owners_of
from psum.aggregator.relay.core.introduction import Identity
from psum.aggregator.relay.core.lacking_ranks import LackingRanks
from psum.aggregator.relay.core.left_ranks import LeftRanks
from psum.aggregator.relay.core.passed_syncs import FIRST_SYNC, PassedSyncs
from psum.aggregator.relay.core.silent_owners import SilentOwners
from psum.aggregator.relay.core.uplink import Uplink
from psum.client.core.known_departures import from_below, further_up
from psum.runtime import rank_names
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import FaultError


class HostJob(Job):
    """The state of one relay's group.

    Args:
        hello: The first worker's hello, with which all others must agree.
        limits: The time-outs and the limit on shards.
        identity: The process that relays.
        credit_bytes: Bytes that may be under way on one uplink.
        clock: The time now, as the methods are given it.
        job: What Job takes besides.
    """

    forwards: ClassVar[bool] = True

    uplink_type: ClassVar[type[Uplink]] = Uplink
    """What is sent to the owners of shards."""

    uplink: Uplink

    def __init__(
        self,
        hello: pb.Hello,
        limits: Limits,
        *,
        identity: Identity,
        credit_bytes: int,
        clock: Callable[[], float],
        **job: Any,
    ) -> None:
        super().__init__(hello, limits, **job)
        addresses, routes = introduction.uplink_addresses(hello)
        self._to_relay = to_relay = bool(hello.next_relays)
        self.uplink = self.uplink_type(addresses, routes, credit_bytes=credit_bytes, to_relay=to_relay, clock=clock)
        """What is sent to the owners of shards, and what they answer."""
        self._identity = identity
        self._clock = clock
        self._aggregators = len(hello.aggregators)
        self._connecting = False
        """Whether the shell has been told to connect to the owners."""
        self._from_above = False
        """Whether what fails now fails because an owner said so."""
        self._asked = AskedRanks(self.uplink.wanted, self.keys, self.workers)
        self._syncs = PassedSyncs(self.uplink)
        self._lacking = LackingRanks(self.open_shards, self.uplink)
        self._silent = SilentOwners(self.name, self.uplink, limits.warn_after)
        self._leaving_told = False
        """Whether the owners have been told that all ranks leave."""
        self._left = LeftRanks(self.members.roster, self.keys, self.uplink, self._awaits_declaration)
        self.rounds.key_failed = self._key_failed
        self.restore = self.give_back

    # Contributions and results.

    def declare(self, rank: int, declared: pb.Key, now: float) -> list[Action]:
        """See Job. The owners are told of a key when all ranks of the group have declared it.

        Raises:
            ProtocolError: The declaration contradicts itself, or names an owner that is not in the list.
        """
        if self.failure is not None:
            return []
        owners = owners_of(declared, self._aggregators, rank_names(self.members.roster.ranks(rank)))
        actions = super().declare(rank, declared, now)
        key = self.keys.get(declared.id)
        if key is None or key.failure is not None:
            return actions
        forwarded = self.uplink.learn(key, owners, declared.owner, rank)
        actions += self._declare_ready([forwarded])
        if self.uplink.take_back(forwarded):
            # Only an owner that hears it on a new stream begins that round again.
            actions += [ReopenUplinks(), *([LeaveUplinks()] if self.leaving else [])]
        # The rank may have a sum that an owner wants. It knows nothing of what it was asked for on an earlier stream.
        self._asked.declared(key.id, rank)
        return actions + self._asked.ask()

    def forward(self, made: Sequence[tuple[Sum, memoryview]]) -> list[Action]:
        """Takes sums of the group's contributions, which go on to their owners. The contributions are let go.

        Args:
            made: The actions that asked for them, and the sums. The job keeps each until its round has a result, and
                then for an owner that may ask for it.
        """
        taken: list[tuple[int, int, int]] = []
        for action, partial in made:
            key, index, round = action.key, action.shard, action.round
            # Of a broadcast whose root is in another group, there is no value here.
            value = None if key.broadcast and not partial else partial
            timed = (key.id, index) in self.rounds.timings.rounds
            contributors = self._contributors(key, index)
            if self.rounds.forward(key, index, round, value):
                self.uplink.forward(key, index, round, action.priority, value, timed=timed, contributors=contributors)
                taken.append((key.id, index, round))
        if not taken:
            return []
        # At once: the results come after the slowest group, and until then their members can send other shards.
        credit = [ReturnCredit(member, tuple(taken)) for member in self.members.connected()]
        return [*credit, SendUplinks()]

    def keep(self, action: Sum, memory: memoryview) -> None:
        """See Job. Until the next result comes, that memory has the last one for an owner that is started again."""
        self.uplink.keep(action.key, action.shard, action.round, memory)

    def heard(self, now: float) -> list[Action]:
        """What follows from the messages that the uplink has handled."""
        events, self.uplink.events = self.uplink.events, []
        if self.failure is not None or self.ended:
            # The owners may not have heard of it yet.
            return []
        actions: list[Action] = []
        for event in events:
            match event:
                case Arrived(key, shard, round, priority, payload, timing, contributors):
                    if timing is not None:
                        self.rounds.timings.answered(key, shard, round, timing, self.members.roster.known)
                    if key.failure is None and self.failure is None:
                        self._answered(key, shard, contributors)
                        actions.append(
                            Sum(key, shard, round, priority, (payload,), relayed=True, contributors=contributors)
                        )
                case Faulted(fault):
                    actions += self._faulted(fault, now)
                case Noticed(text, aggregator):
                    self._silent.spoke(aggregator, now)
                    actions.append(Warn(text, self.members.connected()))
                case _:
                    actions += self._told(event, now)
        staying = {member for member, worker in self.workers.items() if not self._is_gone(member, worker)}
        return actions + self._asked.ask() + self._syncs.pass_on(staying) + self._tell_left()

    def give_back(self, rank: int, entry: ShardRound, payload: memoryview) -> list[Action]:
        """See JobRounds.restore. An owner may want the sum too."""
        actions = self.rounds.restore(rank, entry, payload)
        wanted = (entry.id, entry.shard) in self.uplink.wanted
        self.uplink.wanted.give_back(entry.id, entry.shard, entry.round, payload, entry.contributors)
        self._asked.answered(entry.id, entry.shard)
        return [*actions, SendUplinks()] if wanted else actions

    # Who is there.

    def gives_way(self, hello: pb.Hello, peer: str, now: float) -> bool:
        """See Job. Workers of other groups may live, and wait for those who replace the group."""
        return super().gives_way(hello, peer, now) and not self._takes_in(hello, peer)

    def join(self, hello: pb.Hello, peer: str, now: float) -> tuple[list[Action], FaultError | None]:
        """See Job. When all ranks of the group have joined, the relay joins the owners' job."""
        before = self.members.holders(hello)
        further = list(from_below(hello.departures))
        actions, refusal = super().join(hello, peer, now)
        if refusal is None:
            self.uplink.departures.note(further)
        if refusal is None and self.may_connect and self.failure is None:
            if not self._connecting:
                actions = [*actions, *self._connect()]
            elif self.workers[hello.rank] not in before:
                # The owners must know of the newcomer: those that have a contribution of its predecessor refuse it.
                self.uplink.await_all()
                actions = [*actions, ReopenUplinks()]
        return actions, refusal

    @property
    def may_connect(self) -> bool:
        """Whether the relay may join the owners' job: all ranks of its group are here."""
        return self.complete

    def hello(self, uplink: int, resuming: bool) -> pb.Hello:
        """The hello for one uplink.

        Args:
            uplink: The index of the uplink.
            resuming: Whether this process was in the job before.
        """
        workers = list(self.workers.values())
        departures = self.uplink.departures_for(uplink)
        return introduction.introduction(
            self._identity, workers, uplink, self._clock(), resuming=resuming, departures=departures
        )

    @property
    def leaving(self) -> bool:
        """Whether all ranks of the group have said goodbye."""
        return self.complete and all(worker.left for worker in self.workers.values())

    def leave(self, rank: int, now: float) -> list[Action]:
        """See Job. The last ranks are released when the owners have let the relay go: only these ranks may have a sum
        that an owner, or a rank of another group, needs if the relay itself is started again."""
        worker = self.workers[rank]
        if worker.taking_leave:
            return []
        departures = self.members.departures
        others = ((member, other) for member, other in self.workers.items() if other is not worker)
        last = self.complete and all(self._is_gone(member, other) for member, other in others)
        begins = last and self._connecting and not self._leaving_told and self.failure is None
        if begins:
            departures.held = self._leaving_told = True
        new = set(worker.ranks) - departures.left
        actions = super().leave(rank, now)
        if self.failure is not None:
            return actions
        if begins:
            actions.append(LeaveUplinks())
        elif not last:
            self._left.add(new)
        return actions + self._syncs.settle(rank) + self._tell_left()

    def leave_partly(self, rank: int, ranks: Sequence[int]) -> list[Action]:
        """See Job. The owners are told, as of a worker that leaves while others stay."""
        actions = super().leave_partly(rank, ranks)
        if self.failure is None:
            self._left.add(ranks)
        return actions + self._tell_left()

    def departures(self) -> list[pb.Departure]:
        """See Job. The workers also keep what the relay knows of other groups, for the case that both are killed."""
        return [*super().departures(), *further_up(self.uplink.departures)]

    def given_up(self, ranks: Sequence[int]) -> list[Action]:
        """See Job. The owners are told, as of a rank that leaves while others stay."""
        self._left.add(ranks)
        return super().given_up(ranks)

    def parted(self, now: float) -> list[Action]:
        """The owners have let the relay go, or cannot be reached any more: so may the last ranks."""
        departures = self.members.departures
        departures.held = False
        return departures.releases(now)

    def synced(self, rank: int, number: int, now: float) -> list[Action]:
        """See Job. A number above all ranks is that of a sync that was passed on."""
        if number < FIRST_SYNC:
            return super().synced(rank, number, now)
        return self._syncs.settle(rank, number)

    def tick(self, now: float) -> list[Action]:
        """See Job. Tells the owners for which ranks rounds wait here."""
        actions = super().tick(now)
        if self.failure is not None:
            return actions
        if self._lacking.tell(now):
            actions.append(SendUplinks())
        actions += [Warn(text, self.members.connected()) for text in self._silent.warnings(now)]
        return actions + self._asked.ask() + self._tell_left()

    def fail(self, failure: FaultError, now: float, ranks: tuple[int, ...] | None = None) -> list[Action]:
        """See Job. The owners hear of it, and so do all other groups.

        Other owners would otherwise still have a job in progress when one owner has reported the failure.
        """
        if self.failure is not None:
            return []
        actions = super().fail(failure, now, ranks)
        self.uplink.fail(failure)
        self._asked.clear()
        self._syncs.clear()
        # Even if ranks are missing: those of other groups would wait for this group until the round timeout.
        connect = self._connect() if self.workers else []
        if not self._connecting:
            return actions
        return [*connect, *actions, PartUplinks(pb.Goodbye(fault=failure.of_the_job().to_message()))]

    def end(self) -> None:
        """See Job."""
        super().end()
        # What the kept sums lie in may be large, and the connections go on until the owners have heard the end.
        self.uplink.end()

    def unreachable(self, failure: FaultError, now: float) -> list[Action]:
        """An owner cannot be reached, or has refused the relay."""
        if self.leaving:
            # What it could still want is in the last sums of ranks that are about to leave as well.
            return self.parted(now)
        return self.fail(failure, now)

    def waiting_shards(self) -> Iterator[tuple[int, Key, ShardRounds[object]]]:
        """See Job. Shards follow that were forwarded and wait for the result of all groups."""
        yield from super().waiting_shards()
        for window in self.uplink.windows:
            for shard in window.outstanding.values():
                key = shard.forwarded.key
                yield shard.index, key, key.shards[shard.index]

    @property
    def rounds_waiting(self) -> int:
        """See Job."""
        return super().rounds_waiting + sum(len(window.outstanding) for window in self.uplink.windows)

    def open_rounds(self) -> list[tuple[int, int, int]]:
        """See Job. A round whose owner is about to end too, and leaves it to its next process, cannot be finished."""
        return [round for round in super().open_rounds() if self.uplink.finishes(*round)]

    def check(self) -> None:
        """Asserts the invariants; for tests."""
        super().check()
        self.uplink.check()
        for forwarded in self.uplink.keys.values():
            key = forwarded.key
            assert forwarded.failed == (key.failure is not None)
            for index, shard in key.shards.items():
                outstanding = self.uplink.windows[forwarded.route[index]].outstanding.get((key.id, index))
                assert outstanding is None or shard.phase is Phase.FORWARDING
                if forwarded.declared:
                    # The result may have arrived that the shell is still writing.
                    assert forwarded.rounds[index] - shard.round in (0, 1)

    def _takes_in(self, hello: pb.Hello, peer: str) -> bool:
        """Whether the group can go on with a new process, now that all its workers have vanished.

        It cannot if one of them took part in some round, or if the process is of another run, with other settings. A
        relay that took part comes back: see `kept_seconds`.
        """
        contributed = any(worker.contributed and not worker.is_relay for worker in self.workers.values())
        return not contributed and self.members.has_place(hello) and self.members.disagreement(hello, peer) is None

    def _is_gone(self, member: int, worker: Worker) -> bool:
        """Whether nothing is expected from a member any more."""
        return worker.left

    def _contributors(self, key: Key, index: int) -> int:
        """How many ranks the sum of a round counts, as its owner is told; 0: it is not told."""
        return 0

    def _answered(self, key: Key, index: int, contributors: int) -> None:
        """The result of a round is here. It counts so many ranks; 0: as many as the job began with."""

    def _told(self, event: Event, now: float) -> list[Action]:
        """What follows from an event of other kinds."""
        raise NotImplementedError

    def _declare_ready(self, keys: Iterable[ForwardedKey]) -> list[Action]:
        """Tells the owners of those keys that all members of the group have declared."""
        if not self.may_connect:
            return []
        ready = [
            each
            for each in keys
            if not (each.declared or each.failed) and each.declared_by.issuperset(self._declaring(each.key))
        ]
        for forwarded in ready:
            self.uplink.declare(forwarded)
        return [SendUplinks()] if ready else []

    def _declaring(self, key: Key) -> set[int]:
        """The members that declare a key: not those that had left before this process was started."""
        return set(self.members.roster.members) - self.members.departed

    def _awaits_declaration(self, forwarded: ForwardedKey) -> bool:
        """Whether members that use a key will declare it, so that the owners can be told of it."""
        return True

    def _connect(self) -> list[Action]:
        if self._connecting:
            return []
        self._connecting = True
        self.uplink.title = introduction.title(self._identity, list(self.workers.values()))
        return [ConnectUplinks()]

    def _faulted(self, fault: FaultError, now: float) -> list[Action]:
        if fault.key is None:
            return self.fail(fault, now)
        key = self.keys.get(fault.key)
        if key is None or key.failure is not None:
            return []
        self._from_above = True
        try:
            return self.rounds.fail_key(key, fault)
        finally:
            self._from_above = False

    def _key_failed(self, key: Key, failure: FaultError) -> list[Action]:
        """A key has failed. Unless the owners said so, they are told, so that no other group waits for this one. Those
        that are started again are told in any case."""
        if failure.key is None:
            # The whole job fails.
            return []
        abort = pb.Abort(id=key.id, round=failure.round or 0, text=str(failure), fault=failure.to_message())
        if key.id not in self.uplink.keys:
            owners = {shard.index: shard.owner for shard in key.declared.shards}
            self.uplink.learn(key, owners, key.declared.owner, key.first_rank)
        self.uplink.fail_key(key, abort, known=self._from_above)
        # The credit of its shards has come back too.
        return [SendUplinks()]

    def _tell_left(self) -> list[Action]:
        """Tells the owners which ranks have left, as soon as no round needs their contribution any more."""
        return [SendUplinks()] if not self.leaving and self._left.tell() else []
