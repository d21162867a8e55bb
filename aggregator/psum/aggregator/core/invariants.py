"""What always holds for the rounds of a job between two events, for tests."""

from collections.abc import Iterable, Mapping

from psum.aggregator.core.key import Key
from psum.aggregator.core.membership import Membership
from psum.aggregator.core.memory import JobMemory
from psum.aggregator.core.round import Phase


def check_rounds(
    keys: Mapping[int, Key], members: Membership, open_shards: Iterable[tuple[int, int]], memory: JobMemory
) -> None:
    """Asserts that rounds wait for the right members, and that all that they hold is counted.

    Args:
        keys: The job's keys by id.
        members: The job's workers.
        open_shards: The shards whose round is incomplete, by key's id and index.
        memory: The bytes that the keys reserve and hold.
    """
    held = 0
    incomplete = set()
    present = members.workers.keys() - members.roster.gone
    assert members.roster.members == tuple(sorted(present, key=members.roster.order))
    for key in keys.values():
        assert key.failure is None or not key.shards
        for index, shard in key.shards.items():
            held += sum(map(len, shard.contributions.values()))
            held += key.sizes[index] if shard.last_result is not None else 0
            roster = shard.roster
            assert shard.contributions.keys() <= {*roster.members, *roster.gone, shard.root}
            lacks_value = shard.root is not None and roster.fleet and not shard.value
            gathered = bool(shard.contributions) and shard.awaits_nobody and not lacks_value
            # A round may be summed while its members are lost.
            assert gathered == (shard.phase is not Phase.GATHERING) or (roster.gone and not gathered)
            begun = bool(shard.contributions or shard.ranks_lacking_result)
            assert (shard.since is not None) == begun
            assert not shard.ranks_lacking_result or shard.last_result is None
            if shard.phase is Phase.GATHERING and begun:
                incomplete.add((key.id, index))
    assert incomplete == set(open_shards)
    assert held == memory.held_bytes
    reserved = sum(key.reserved_bytes for key in keys.values() if key.failure is None)
    assert reserved <= memory.budget.reserved_bytes
