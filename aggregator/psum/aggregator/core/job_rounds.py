"""The keys of one job: what their declarations, contributions and sums lead to.

A method that raises ProtocolError has changed nothing.
"""

from collections.abc import Callable, Sequence
from typing import Final

from psum.aggregator.core import error_texts
from psum.aggregator.core.actions import Action, Ask, Deliver, Report, ReturnCredit, Sum
from psum.aggregator.core.counters import JobCounters
from psum.aggregator.core.held import Held
from psum.aggregator.core.invariants import check_rounds
from psum.aggregator.core.key import Key
from psum.aggregator.core.membership import Membership
from psum.aggregator.core.memory import JobMemory
from psum.aggregator.core.open_shards import OpenShards
from psum.aggregator.core.recovery import Recovery
from psum.aggregator.core.roster import Roster
from psum.aggregator.core.round import Phase, ShardRounds, Verdict
from psum.aggregator.core.timings import Timings
from psum.runtime import rank_names
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import FaultError, ProtocolError

_NOTHING: Final = memoryview(b"")


class JobRounds:
    """The keys that a job has declared, and the rounds of their shards.

    Args:
        members: The job's workers.
        open_shards: The shards whose round is incomplete.
        memory: The bytes that the keys reserve and hold.
        counters: Where contributions are counted.
        max_shards: How many shards the job may declare; every key has at least one.
    """

    def __init__(
        self,
        members: Membership,
        open_shards: OpenShards,
        memory: JobMemory,
        counters: JobCounters,
        max_shards: int,
    ) -> None:
        self.keys: dict[int, Key] = {}
        """The declared keys by id."""
        self.shards = 0
        """How many shards they have."""
        self.completed = 0
        """How many rounds were completed."""
        self.timings = Timings()
        """When contributions came whose senders asked for timings."""
        self.recovery = Recovery(self.keys, members, open_shards, memory)
        """How rounds go on that an earlier process of this aggregator has begun."""
        self._name = members.first.job
        self._members = members
        self._workers = members.workers
        self._left = members.departures.left
        self._roster = members.roster
        self._open_shards = open_shards.shards
        self._memory = memory
        self._counters = counters
        self._max_shards = max_shards
        self._failed = False
        """Whether the job failed: then what still arrives is ignored."""
        self.key_failed: Callable[[Key, FaultError], Sequence[Action]] = _nobody_listens
        """Called with each key that fails, alone or with the whole job. Returns what follows if it fails alone."""

    @property
    def take_together(self) -> bool:
        """Whether contributions may be taken together (SmallRounds): nothing has to be known of each of them."""
        return not (self._failed or self._left or self.timings.rounds)

    def declare(self, rank: int, declared: pb.Key, now: float) -> list[Action] | FaultError:
        """Handles a worker's declaration of a key.

        Returns:
            The actions that follow, or why the whole job fails.

        Raises:
            ProtocolError: The declaration contradicts itself.
        """
        roster = self._part(rank, declared) if declared.ranks else self._roster
        key = self.keys.get(declared.id)
        if key is None:
            shards = self.shards + max(1, len(declared.shards))
            if shards > self._max_shards:
                return error_texts.too_many_shards(self._name, len(self.keys), declared, shards, self._max_shards)
            self.keys[declared.id] = key = Key(declared, rank, roster)
            self.shards = shards
            if not self._memory.reserve(key):
                # `fail_key` would release what was not reserved.
                need, budget = self._memory.need(key), self._memory.budget
                failure = error_texts.exhausted(self._name, key, roster.most_members, need, budget)
                key.fail(failure)
                return [Report(failure, self._users(key)), *self.key_failed(key, failure)]
        if key.failure is not None:
            return [Report(key.failure, (rank,))]
        if (disagreement := key.disagreement(declared, rank)) is not None:
            return self.fail_key(key, disagreement)
        key.learn(declared.label, rank)
        if self.recovery.inherits(key, declared) and (job_failure := self._members.inherit()) is not None:
            return job_failure
        if (out_of_step := self.recovery.out_of_step(key, declared, rank)) is not None:
            return self.fail_key(key, out_of_step)
        return self.recovery.resume(key, declared, rank, now)

    def contribute(
        self, rank: int, entry: ShardRound, payload: memoryview | None, now: float, message_bytes: int = 0
    ) -> list[Action]:
        """Handles a worker's push of a shard (payload), or its pull of a broadcast shard (None).

        Args:
            rank: The worker.
            entry: The shard and its round.
            payload: The shard's value. The job keeps the view until the round is summed or the key fails.
            now: The time.
            message_bytes: How many bytes a view of the payload keeps alive; 0 if hardly more than itself.

        Raises:
            ProtocolError: The key or shard is unknown, or the payload or the round is not what is expected.
        """
        if self._failed:
            return []
        key_id, index, round = entry.id, entry.shard, entry.round
        key = self.keys.get(key_id)
        if key is None:
            raise ProtocolError(f"{self._who(rank)} contributed to key id {key_id:#x}, which it has not declared")
        if key.failure is not None:
            return []
        shard = key.shards.get(index)
        if shard is None:
            raise ProtocolError(
                f"{self._who(rank)} contributed to shard {index} of key {key.title}, which is none of those declared"
            )
        whole, sends = key.sizes[index], not key.broadcast or self._sends(key, rank, payload)
        size = len(payload) if payload is not None else 0
        if (payload is not None) is not sends or (sends and size != whole):
            raise ProtocolError(
                f"{self._who(rank)} contributed {'nothing' if payload is None else f'{size} bytes'} to shard {index} of"
                f" key {key.name!r}; expected {whole if sends else 'a pull'}"
            )
        # When a round completes, every rank has the result of the round before, and that result is released.
        kept = whole if shard.last_result is not None else 0
        asked = bool(shard.ranks_lacking_result)
        verdict = shard.contribute(rank, round, _NOTHING if payload is None else payload, entry.priority, now)
        worker = self._workers[rank]
        self._counters.contributed(key.broadcast, verdict, size, now - (shard.since or now))
        if (entry.timed or self.timings.rounds) and verdict in (Verdict.TAKE, Verdict.COMPLETE):
            complete = verdict is Verdict.COMPLETE
            self.timings.contributed(key, entry.shard, entry.round, rank, asked=entry.timed, complete=complete)
        match verdict:
            case Verdict.TAKE:
                worker.contributed = True
                self._memory.held_bytes += size
                self._open_shards[key_id, index] = (key, shard)
                if 2 * size < message_bytes:
                    # While the round waits, the view would keep the whole message alive, which no budget counts.
                    shard.copy(rank)
                if payload:
                    worker.uncredited.append(Held.one(now, key, index, shard, round))
                return self.fail_if_deserted(key, shard) if self._left else []
            case Verdict.COMPLETE:
                worker.contributed = True
                self._memory.held_bytes += size - kept
                self._open_shards.pop((key_id, index), None)
                return [Sum(key, index, round, shard.priority or 0, shard.to_sum())]
            case Verdict.REPLAY:
                deliver = Deliver(key, index, round, entry.priority, shard.last_result, (rank,))
                if key.broadcast and payload is not None:
                    deliver.sender = rank
                return [deliver]
            case Verdict.WAIT:
                self._open_shards.setdefault((key_id, index), (key, shard))
                worker.uncredited.append(Held.one(now, key, index, shard, round))
                if shard.holder is None or asked:
                    return []
                return [Ask(shard.holder, ((key_id, index, round),))]
            case Verdict.IGNORE:
                # The sender has charged its credit again for the duplicate.
                if shard.phase is Phase.FORWARDING:
                    return [ReturnCredit(rank, ((key_id, index, round),))]
                worker.uncredited.append(Held.one(now, key, index, shard, round))
                return []
            case Verdict.REFUSE:
                raise ProtocolError(
                    f"{self._who(rank)} contributed to round {round} of key {key.title} shard {index},"
                    f" which is at round {shard.round}"
                )

    def summed(self, key: Key, index: int, result: object) -> list[Action]:
        """Takes the sum that a Sum action asked for."""
        shard = key.shards.get(index)
        if shard is None or shard.phase is Phase.GATHERING:
            # The key or the job has failed in the meantime.
            return []
        round, priority = shard.round, shard.priority or 0
        if shard.phase is Phase.FORWARDING:
            self._memory.held_bytes += key.sizes[index] - sum(map(len, shard.contributions.values()))
        elif not key.broadcast:
            # In a broadcast one member has contributed bytes, otherwise all have.
            self._memory.held_bytes -= key.sizes[index] * (len(shard.contributions) - 1)
        sender = self._sender(key, shard) if key.broadcast else -1
        shard.complete(result)
        self.completed += 1
        deliver = Deliver(key, index, round, priority, result, shard.roster.members, sender=sender)
        return [*self.timings.summed(key, index, round), deliver] if self.timings.rounds else [deliver]

    def forward(self, key: Key, index: int, round: int, partial: memoryview | None) -> bool:
        """Takes the sum of a round's contributions, which goes on to the shard's owner. The contributions are let go.

        Args:
            key: The key.
            index: The shard's number within it.
            round: The round.
            partial: The sum, kept until the round has a result; None: nothing but a pull is forwarded.

        Returns:
            Whether it is to be forwarded. If not, the key or the job has failed in the meantime.
        """
        shard = key.shards.get(index)
        if shard is None or shard.phase is not Phase.SUMMING or shard.round != round:
            return False
        self._memory.held_bytes -= sum(map(len, shard.contributions.values()))
        self._memory.held_bytes += 0 if partial is None else len(partial)
        shard.forward(partial)
        if self.timings.rounds:
            self.timings.forwarded(key, index, round)
        return True

    def restore(self, rank: int, entry: ShardRound, payload: memoryview) -> list[Action]:
        """Takes the sum of a round from a worker; an earlier aggregator process made that sum.

        Raises:
            ProtocolError: It does not have the shard's size.
        """
        return self.recovery.restore(rank, entry, payload)

    def restored(self, key: Key, index: int, round: int, result: object) -> list[Action]:
        """Sends a sum that was given back to the ranks that wait for it."""
        if not (ranks := self.recovery.restored(key, index, round, result)):
            return []
        sender = self._root_worker(key) if key.broadcast else -1
        return [Deliver(key, index, round, key.shards[index].priority or 0, result, ranks, sender=sender)]

    def abort(self, rank: int, message: pb.Abort) -> list[Action]:
        """Fails a key because a worker will not contribute to a round of it."""
        key = self.keys.get(message.id)
        if key is None or key.failure is not None:
            return []
        return self.fail_key(key, error_texts.aborted(self._name, key, self._workers[rank], message))

    def lacking(self, rank: int, entry: ShardRound, ranks: Sequence[int]) -> None:
        """Notes which of its ranks a relay waits for in a round. A round that is not the current one is ignored.

        Raises:
            ProtocolError: The relay does not stand for these ranks.
        """
        if not set(ranks).issubset(self._roster.ranks(rank)):
            raise ProtocolError(
                f"{self._who(rank)} of job {self._name!r} waits for {rank_names(sorted(ranks))},"
                " which it does not stand for"
            )
        key = self.keys.get(entry.id)
        shard = key.shards.get(entry.shard) if key is not None else None
        if shard is not None and shard.round == entry.round and rank not in shard.contributions:
            shard.lacks(rank, frozenset(ranks))

    def fail_deserted(self) -> list[Action]:
        """Fails the keys whose current round needs a rank that has left."""
        actions: list[Action] = []
        for key, shard in list(self._open_shards.values()):
            # Without any contribution, some rank waits for the sum of the round before, and for no other rank.
            if shard.contributions:
                actions += self.fail_if_deserted(key, shard)
        return actions

    def fail_if_deserted(self, key: Key, shard: ShardRounds[object]) -> list[Action]:
        """Fails a key if the current round of a shard needs a rank that has left."""
        if key.failure is not None:
            return []
        gone = [
            (sorted(left), self._workers[member])
            for member in shard.members_missing
            if (left := self._left.intersection(self._roster.ranks(member)))
        ]
        return self.fail_key(key, error_texts.deserted(key, shard, gone)) if gone else []

    def fail_key(self, key: Key, failure: FaultError) -> list[Action]:
        """Fails a key on all ranks, and releases what it holds."""
        for index in key.shards:
            self._open_shards.pop((key.id, index), None)
        self._memory.drop(key)
        following = self._let_go(key, failure)
        self.timings.forget(key)
        return [Report(failure, self._users(key)), *following]

    def fail(self, failure: FaultError) -> None:
        """Fails all keys because the job has failed, and releases what they hold."""
        self._failed = True
        for key in self.keys.values():
            self._let_go(key, failure)
        self._clear()

    def end(self) -> None:
        """Releases everything when the job ends."""
        for key in self.keys.values():
            # Other objects, such as `Worker.uncredited`, may outlive the job and refer to the key.
            key.let_go()
            if key.failure is None:
                self._memory.release(key)
        self._clear()

    def open_rounds(self) -> list[tuple[int, int, int]]:
        """The rounds to finish before this aggregator ends: (key's id, shard, round).

        Some rank has contributed to them, there is no result yet, and all missing ranks are connected. A round that
        waits for another rank cannot be finished, because a draining aggregator accepts no streams.
        """
        if not self._members.complete:
            return []
        here = set(self._members.connected())
        return [
            (key.id, index, shard.round)
            for key in self.keys.values()
            for index, shard in key.shards.items()
            if shard.contributions and here.issuperset(shard.members_missing)
        ]

    def check(self) -> None:
        """Asserts the invariants; for tests."""
        check_rounds(self.keys, self._members, self._open_shards, self._memory)
        assert len(self.timings) <= self.shards

    def _part(self, rank: int, declared: pb.Key) -> Roster:
        """The ranks that use a key which is not for all ranks.

        Raises:
            ProtocolError: There is no such key in this job.
        """
        raise ProtocolError(
            f"{self._who(rank)} declared key {declared.name[:80]!r} for {len(declared.ranks)} ranks; only an elastic"
            " job has keys that are not for all ranks"
        )

    def _users(self, key: Key) -> tuple[int, ...]:
        """The members that are connected and use a key."""
        connected = self._members.connected()
        if not key.ranks:
            return connected
        return tuple(member for member in connected if not set(key.ranks).isdisjoint(self._roster.ranks(member)))

    def _who(self, rank: int) -> str:
        """A member in errors."""
        return rank_names(self._roster.ranks(rank))

    def _sends(self, key: Key, rank: int, payload: memoryview | None) -> bool:
        """Whether a member has to send a value to a broadcast; otherwise it only asks for it."""
        return rank == key.root

    def _sender(self, key: Key, shard: ShardRounds[object]) -> int:
        """The member that has sent the value of a broadcast, and does not receive it."""
        return key.root

    def _root_worker(self, key: Key) -> int:
        """The member that has the value of a broadcast for sure, also if it had sent it to an earlier aggregator."""
        return key.root

    def _let_go(self, key: Key, failure: FaultError) -> Sequence[Action]:
        if key.failure is not None:
            return ()
        self._memory.release(key)
        key.fail(failure)
        return self.key_failed(key, failure)

    def _clear(self) -> None:
        self.keys.clear()
        self.recovery.restoring.clear()
        self._open_shards.clear()
        self.timings.clear()
        self._memory.held_bytes = 0


def _nobody_listens(key: Key, failure: FaultError) -> Sequence[Action]:
    """Only the job of a relay's group passes on what fails."""
    return ()
