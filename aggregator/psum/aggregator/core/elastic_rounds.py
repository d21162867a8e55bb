"""The rounds of an elastic job: how they end without lost ranks, and how many ranks each result counts."""

from collections.abc import Sequence

from psum.aggregator.core import elastic_texts, error_texts
from psum.aggregator.core.actions import Action, Ask, Deliver, Sum
from psum.aggregator.core.admissions import Admission
from psum.aggregator.core.earlier_roster import EarlierRoster
from psum.aggregator.core.elastic_membership import ElasticMembership
from psum.aggregator.core.elastic_roster import FIRST_RELAY, ElasticRoster
from psum.aggregator.core.job_rounds import JobRounds
from psum.aggregator.core.key import Key
from psum.aggregator.core.roster import Roster
from psum.aggregator.core.round import Phase, ShardRounds
from psum.runtime import rank_names
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import FaultError, ProtocolError


class ElasticRounds(JobRounds):
    """See JobRounds. A round is complete when every rank has contributed that is neither lost nor has left.

    What a rank contributed before it was lost counts. Sums and results say how many ranks contributed.
    """

    _members: ElasticMembership
    _roster: ElasticRoster

    def __init__(self, *arguments: object, **others: object) -> None:
        super().__init__(*arguments, **others)  # type: ignore[arg-type]
        self.timings.rank_of = lambda member: self._roster.ranks(member)[0]
        self._contributors: dict[tuple[int, int], int] = {}
        """How many ranks the last result of a shard counts, by (key's id, shard), unless it is the nominal number."""
        self._begun_again = False
        """Whether keys were forgotten. What still arrives for them is ignored."""
        self._ranked = False
        """Whether a key was ever declared that only some ranks use."""
        self._admission: Admission | None = None
        """The last admission, if rounds may be open that come before it."""

    def declare(self, rank: int, declared: pb.Key, now: float) -> list[Action] | FaultError:
        """See JobRounds."""
        self._ranked = self._ranked or bool(declared.ranks)
        outcome = super().declare(rank, declared, now)
        if self._admission is not None and (key := self.keys.get(declared.id)) is not None:
            self._set_rosters(key)
        return outcome

    def begin_at(self, admission: Admission) -> None:
        """Waits for a newcomer from the rounds of its admission on. A round before that does not need it.

        Without rounds nothing before is open, as far as this admission goes.
        """
        if not admission.rounds:
            return
        self._admission = admission
        for key in self.keys.values():
            self._set_rosters(key)

    @property
    def take_together(self) -> bool:
        """See JobRounds. Each contribution must be looked at once something has happened."""
        return super().take_together and self._roster.unchanged and not self._contributors and not self._ranked

    def contribute(
        self, rank: int, entry: ShardRound, payload: memoryview | None, now: float, message_bytes: int = 0
    ) -> list[Action]:
        """See JobRounds. What comes from a lost rank is ignored."""
        roster = self._roster
        if roster.unchanged and not self._contributors and not self._ranked:
            # As long as nothing has happened, an elastic job costs what others do.
            return JobRounds.contribute(self, rank, entry, payload, now, message_bytes)
        key = self.keys.get(entry.id)
        if rank in roster.gone or (key is None and self._begun_again):
            return []
        if key is not None and key.ranks and set(key.ranks).isdisjoint(roster.ranks(rank)):
            if rank >= FIRST_RELAY:
                # Those of its ranks that use it have left, and this aggregator was started again after that.
                return []
            raise ProtocolError(
                f"{self._who(rank)} contributed to key {key.title}, which only {rank_names(sorted(key.ranks))} use"
            )
        if entry.contributors or rank >= FIRST_RELAY:
            self._note_contributors(rank, key, entry)
        actions = super().contribute(rank, entry, payload, now, message_bytes)
        for action in actions:
            if isinstance(action, Sum):
                action.contributors = self._count(key, action.shard)
            elif isinstance(action, Deliver):
                action.contributors = self._contributors.get((action.key.id, action.shard), 0)
        if key is not None and key.broadcast:
            return actions + self._replace_root(key, entry.shard)
        return actions

    def summed(self, key: Key, index: int, result: object) -> list[Action]:
        """See JobRounds."""
        if self._roster.unchanged and not self._contributors:
            return JobRounds.summed(self, key, index, result)
        contributors = self._count(key, index)
        actions = super().summed(key, index, result)
        if self._admission is not None:
            self._set_rosters(key)
        return self._counted(actions, (key.id, index), contributors) if actions else actions

    def restore(self, rank: int, entry: ShardRound, payload: memoryview) -> list[Action]:
        """See JobRounds. The sum comes with its count. For the current round it is the value of a rank that stands in
        for the lost root of a broadcast."""
        key = self.keys.get(entry.id)
        shard = None if key is None else key.shards.get(entry.shard)
        if key is not None and shard is not None and key.broadcast and entry.round == shard.round:
            return self._take_value(rank, key, entry.shard, payload)
        actions = super().restore(rank, entry, payload)
        for action in actions:
            if isinstance(action, Sum):
                action.contributors = entry.contributors
                self._note_count((entry.id, entry.shard), entry.contributors)
        return actions

    def restored(self, key: Key, index: int, round: int, result: object) -> list[Action]:
        """See JobRounds."""
        which = key.id, index
        return self._counted(super().restored(key, index, round, result), which, self._contributors.get(which, 0))

    def settle(self, last: int) -> list[Action]:
        """Ends the open rounds that wait for nobody, after ranks were lost or have left.

        Args:
            last: The rank that they have waited for last.
        """
        actions: list[Action] = []
        for (_, index), (key, _) in list(self._open_shards.items()):
            actions += self._replace_root(key, index) or self._conclude(key, index, last)
        return actions

    def forget_ranked_keys(self) -> None:
        """Forgets the keys that are not for all ranks and are at rest, and releases their memory.

        To be called when a process is admitted: transfers before that are over, and those that took part in them have
        forgotten the keys too, or will before they use others.
        """
        for key in [key for key in self.keys.values() if key.ranks]:
            at_rest = all(
                shard.phase is Phase.GATHERING and not shard.contributions and not shard.ranks_lacking_result
                for shard in key.shards.values()
            )
            if not at_rest or any((key.id, index) in self.recovery.restoring for index in key.shards):
                continue
            if key.failure is None:
                self._memory.drop(key)
                self._memory.release(key)
            # Sums that are given back late find no shard.
            key.let_go()
            self.timings.forget(key)
            for index in key.sizes:
                self._contributors.pop((key.id, index), None)
            self.shards -= max(1, len(key.sizes))
            del self.keys[key.id]
        self._roster.keep_parts({key.roster for key in self.keys.values()})

    def fail_deserted(self) -> list[Action]:
        """See JobRounds. Rounds go on without those who have left, as long as enough ranks are left."""
        return super().fail_deserted() if self._roster.deserted else []

    def fail_if_deserted(self, key: Key, shard: ShardRounds[object]) -> list[Action]:
        """See JobRounds. Called only while ranks have left."""
        if not self._roster.deserted or key.failure is not None or key.ranks:
            return []
        gone = [
            (left, worker)
            for member, worker in self._workers.items()
            if (left := [rank for rank in self._roster.ranks(member) if rank in self._roster.left])
            and member not in shard.contributions
        ]
        return self.fail_key(key, error_texts.deserted(key, shard, gone)) if gone else []

    @property
    def is_learning(self) -> bool:
        """Whether this process has completed no round of some shard: it has the shard's round from declarations only.

        That of a process that was stopped for long may be many rounds old, also if it was the first round.
        """
        return any(shard.inherited for key in self.keys.values() for shard in key.shards.values())

    def is_ahead(self, rank: int, declared: pb.Key) -> bool:
        """Whether a rank declares a later round than the first, of a shard of which no round was completed here.

        This process has forgotten the rounds of keys that have failed, and of keys of some ranks after an admission. So
        those do not count.
        """
        key = self.keys.get(declared.id)
        if declared.ranks or (key is not None and key.failure is not None):
            return False
        return self._members.goes_on(rank) and any(
            shard.round > 0 and (key is None or (known := key.shards.get(shard.index)) is None or known.inherited)
            for shard in declared.shards
        )

    def begin_again(self) -> None:
        """Forgets all keys, as if this aggregator process had just been started. Ranks declare them again."""
        for key in self.keys.values():
            # Sums that are being made find no shard.
            key.let_go()
            if key.failure is None:
                self._memory.release(key)
        self._clear()
        self._contributors.clear()
        self.shards = 0
        self._begun_again = True

    def _set_rosters(self, key: Key) -> None:
        """Sets for which ranks the current rounds of a key wait, after an admission or in another round.

        The newcomer's rounds of a key of some ranks begin with the first one.
        """
        if key.ranks:
            return
        admission = self._admission
        first = 0 if admission is None else admission.rounds.get(key.id, 0)
        for shard in key.shards.values():
            if admission is not None and shard.round < first:
                shard.roster = EarlierRoster(self._roster, admission.rank)
            else:
                shard.roster = key.roster

    def lacking(self, rank: int, entry: ShardRound, ranks: Sequence[int]) -> None:
        """See JobRounds. What a relay says of ranks that are gone by now is ignored."""
        super().lacking(rank, entry, [each for each in ranks if not self._roster.is_gone(each)])

    def _sends(self, key: Key, rank: int, payload: memoryview | None) -> bool:
        """See JobRounds. A relay may go on without the root behind it, before this aggregator hears that it is gone.

        An aggregator that was started again does not know which relay stood for a root that is lost. That relay may
        have the root's value, which it sends again.
        """
        if rank < FIRST_RELAY or payload is None:
            return rank == self._member_of_root(key) and rank < FIRST_RELAY
        member = self._roster.member(key.root)
        return rank == member or (member is None and key.root in self._roster.lost)

    def _sender(self, key: Key, shard: ShardRounds[object]) -> int:
        """See JobRounds. A relay may go on although the root behind it is gone."""
        return shard.sender

    def _root_worker(self, key: Key) -> int:
        """See JobRounds. A relay that comes back may not have the value."""
        member = self._member_of_root(key)
        return member if member < FIRST_RELAY else -1

    def _member_of_root(self, key: Key) -> int:
        member = self._roster.member(key.root)
        return key.root if member is None else member

    def _let_go(self, key: Key, failure: FaultError) -> Sequence[Action]:
        for index in key.sizes:
            self._contributors.pop((key.id, index), None)
        return super()._let_go(key, failure)

    def _count(self, key: Key | None, index: int) -> int:
        """How many ranks have contributed to the current round of a shard; 0: as many as the job began with.

        With further ranks there may be more. Results are scaled by this number, so 0 says nothing about which they are.
        """
        shard = None if key is None or key.broadcast else key.shards.get(index)
        if shard is None:
            return 0
        count = _ranks_in(shard)
        return count if count != shard.roster.size else 0

    def ranks_in(self, key: Key, index: int) -> int:
        """How many ranks have contributed to the current round of a shard, also through relays."""
        shard = key.shards.get(index)
        return 0 if shard is None else _ranks_in(shard)

    def _note_contributors(self, member: int, key: Key | None, entry: ShardRound) -> None:
        """Notes of how many ranks a relay's contribution is, if it may count.

        Raises:
            ProtocolError: It does not make sense.
        """
        most = self._members.first.elastic.max
        if member < FIRST_RELAY or not 0 < entry.contributors <= most:
            raise ProtocolError(
                f"{self._who(member)} of job {self._name!r} contributed the sum of {entry.contributors} ranks; expected"
                f" 1 to {most} from a relay, and none from a worker"
            )
        shard = None if key is None else key.shards.get(entry.shard)
        if shard is not None and entry.round == shard.round and member not in shard.contributions:
            shard.counts = {**(shard.counts or {}), member: entry.contributors}

    def _counted(self, actions: list[Action], which: tuple[int, int], contributors: int) -> list[Action]:
        """Notes how many ranks a result counts, and tells its receivers."""
        for action in actions:
            if isinstance(action, Deliver):
                action.contributors = contributors
                self._note_count(which, contributors)
        return actions

    def _note_count(self, which: tuple[int, int], contributors: int) -> None:
        if contributors:
            self._contributors[which] = contributors
        else:
            self._contributors.pop(which, None)

    def _part(self, rank: int, declared: pb.Key) -> Roster:
        """See JobRounds. Such a key names each of its ranks once, and the one that declares it is among them."""
        ranks, most = list(declared.ranks), self._members.first.elastic.max
        # Those of a relay's ranks that use a key may have left, before this aggregator was started again.
        foreign = rank < FIRST_RELAY and rank not in ranks
        if len(ranks) != len(set(ranks)) or max(ranks) >= most or foreign:
            raise ProtocolError(
                f"{self._who(rank)} declared key {declared.name[:80]!r} for the ranks {ranks[:8]} of at most {most};"
                " expected each rank once, and its own among them"
            )
        return self._roster.part(ranks)

    def _conclude(self, key: Key, index: int, last: int) -> list[Action]:
        """Ends the current round of a shard if it waits for nobody. `last` is the rank that it has waited for last."""
        shard = key.shards.get(index)
        if shard is None:
            return []
        kept = key.sizes[index] if shard.last_result is not None else 0
        if not shard.conclude():
            return []
        self._memory.held_bytes -= kept
        self._open_shards.pop((key.id, index), None)
        if self.timings.rounds:
            self.timings.contributed(key, index, shard.round, last, asked=False, complete=True)
        priority, contributors = shard.priority or 0, self._count(key, index)
        return [Sum(key, index, shard.round, priority, shard.to_sum(), contributors=contributors)]

    def _rootless(self, shard: ShardRounds[object]) -> bool:
        """Whether the current round of a broadcast has begun, and its root is gone without having contributed."""
        return (
            shard.root is not None
            and bool(shard.contributions)
            and shard.phase is Phase.GATHERING
            and shard.roster.is_gone(shard.root)
            and not shard.value
            and shard.ranks_lacking_result <= shard.roster.gone
        )

    def _replace_root(self, key: Key, index: int) -> list[Action]:
        """If a broadcast has lost its root: asks the lowest member for its value as soon as all members wait for one.

        By then each of them has an array that receives the result. Called whenever a member contributes or is gone, it
        asks again if that member's stream was broken, or asks the next one if the member is gone.
        """
        shard = key.shards.get(index)
        if shard is None or not self._rootless(shard):
            return []
        if key.ranks:
            # Only its root has anything to send.
            why = "is lost" if key.root in self._roster.lost else "has left"
            return self.fail_key(key, elastic_texts.root_lost(self._name, key, shard, why))
        if not shard.awaits_nobody or not shard.roster.members:
            # Only a newcomer may be left, which takes no part in this round.
            return []
        return [Ask(shard.roster.members[0], ((key.id, index, shard.round),))]

    def _take_value(self, rank: int, key: Key, index: int, payload: memoryview) -> list[Action]:
        """Takes a rank's value of a broadcast in place of the root's. The first one counts.

        Raises:
            ProtocolError: It does not have the shard's size.
        """
        shard = key.shards[index]
        if key.ranks or rank in self._roster.gone or not self._rootless(shard):
            return []
        if len(payload) != key.sizes[index]:
            raise ProtocolError(
                f"{self._who(rank)} gave {len(payload)} bytes as its value of key {key.title} shard {index}; expected"
                f" {key.sizes[index]}"
            )
        shard.contributions[key.root] = payload
        self._memory.held_bytes += len(payload)
        return self._conclude(key, index, rank)


def _ranks_in(shard: ShardRounds[object]) -> int:
    """How many ranks the contributions to the current round of a shard hold."""
    count = len(shard.contributions)
    if not shard.counts:
        return count
    return count + sum(number - 1 for member, number in shard.counts.items() if member in shard.contributions)
