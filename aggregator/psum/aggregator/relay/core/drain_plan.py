"""Which rounds a relay still finishes before its process ends, together with the owner in the same process."""

from collections.abc import Set

from psum.aggregator.core.job import Job
from psum.aggregator.core.round import ShardRounds
from psum.aggregator.relay.core.host_job import HostJob

#: (key's id, shard, round).
Round = tuple[int, int, int]


def plan(group: HostJob, own_uplinks: Set[int], fleet: Job | None, fleet_rounds: set[Round]) -> set[Round]:
    """The rounds that a group's job finishes.

    A round that some rank of the group has begun needs all of the group, and then its owner. If the owner is this
    process, that has to finish it too; and a round that another group has begun there needs this group. So each list
    is completed by the other one. Otherwise, the two would wait for each other until the grace period ends.

    Args:
        group: The group's job.
        own_uplinks: The uplinks that lead to this process.
        fleet: The job of that name whose shards this process owns, None if there is none.
        fleet_rounds: The rounds that it finishes. They are changed.
    """
    rounds = set()
    for round in group.open_rounds():
        forwarded = group.uplink.keys.get(round[0])
        if forwarded is not None and forwarded.route[round[1]] in own_uplinks:
            if _owner_finishes(fleet, fleet_rounds, round):
                rounds.add(round)
        else:
            rounds.add(round)
    if fleet is not None:
        member = min(group.workers)
        for round in fleet_rounds - rounds:
            shard = _shard(fleet, round)
            if shard is not None and member in shard.members_missing:
                (rounds.add if _all_connected(group) else fleet_rounds.discard)(round)
    return rounds


def still_open(group: HostJob, own_uplinks: Set[int], fleet: Job | None) -> set[Round]:
    """The rounds of a group that are open and can still be finished.

    Those that have gone on to the owner in this process can be only as long as all members are connected that it waits
    for: another relay may have ended in the meantime.
    """
    here = set() if fleet is None else set(fleet.members.connected())
    rounds = set()
    for round in group.open_rounds():
        forwarded = group.uplink.keys.get(round[0])
        shard = None if fleet is None else _shard(fleet, round)
        own = forwarded is not None and forwarded.route[round[1]] in own_uplinks
        if own and shard is not None and shard.round == round[2] and not here.issuperset(shard.members_missing):
            continue
        rounds.add(round)
    return rounds


def _owner_finishes(fleet: Job | None, fleet_rounds: set[Round], round: Round) -> bool:
    """Whether the owner in this process finishes a round of the group; it may have to be told."""
    shard = _shard(fleet, round) if fleet is not None else None
    if fleet is None or shard is None:
        return False
    if shard.round == round[2] and round not in fleet_rounds:
        if not _all_connected(fleet):
            return False
        fleet_rounds.add(round)
    # If it is past that round, the result is on its way.
    return True


def _shard(job: Job, round: Round) -> ShardRounds[object] | None:
    key = job.keys.get(round[0])
    return None if key is None else key.shards.get(round[1])


def _all_connected(job: Job) -> bool:
    """Whether all ranks of a job are here. A draining process accepts no streams."""
    return job.complete and set(job.members.connected()).issuperset(job.members.roster.members)
