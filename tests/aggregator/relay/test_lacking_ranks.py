"""Owners know for which ranks of its group a relay waits."""

import pytest

from psum.aggregator.relay.core.lacking_ranks import LACKING_SECONDS
from tests.aggregator.relay.hosts import Hosts, two_hosts
from tests.aggregator.relay.pure import key

hosts = pytest.fixture(two_hosts)


def test_the_owner_knows_for_which_ranks_a_relay_waits(hosts: Hosts) -> None:
    """The status at the owner names the one rank that has not contributed at its relay."""
    hosts.declare(key(0))
    hosts.push(ranks=[0, 1, 2])
    hosts.tick(LACKING_SECONDS + 0.1)
    [fleet] = hosts.owners[0].fleet.jobs.values()
    assert list(fleet.keys[7].shards[0].waiting_for()) == [3]


def test_an_owner_that_was_started_again_is_told_for_which_ranks_a_relay_waits(hosts: Hosts) -> None:
    """Its warnings would otherwise name ranks that have contributed."""
    hosts.declare(key(0))
    hosts.push(ranks=[0, 1, 2])
    hosts.tick(LACKING_SECONDS)
    hosts.restart_owner()
    hosts.tick(LACKING_SECONDS)
    [fleet] = hosts.owners[0].fleet.jobs.values()
    assert list(fleet.keys[7].shards[0].waiting_for()) == [3]


@pytest.mark.parametrize("owner_knows", [True, False])
def test_the_owner_knows_for_which_rank_a_key_is_not_declared(hosts: Hosts, owner_knows: bool) -> None:
    """A rank that has not even declared the key is named, not the ranks of its group that have contributed."""
    if owner_knows:
        hosts.declare(key(0), [0, 2, 3])
        hosts.push(ranks=[0, 2, 3])
        hosts.tick(LACKING_SECONDS)
    else:
        hosts.declare(key(0), [0])
        hosts.push(ranks=[0])
        hosts.tick(LACKING_SECONDS)
        hosts.declare(key(0), [2, 3])
        hosts.push(ranks=[2, 3])
        hosts.tick(LACKING_SECONDS)
    [fleet] = hosts.owners[0].fleet.jobs.values()
    assert list(fleet.keys[7].shards[0].waiting_for()) == [1]


def test_what_an_owner_is_told_does_not_pile_up(hosts: Hosts) -> None:
    """While there is no connection, what is said again and again waits once."""
    hosts.declare(key(0), [0])
    hosts.push(ranks=[0])
    for _ in range(5):
        hosts.relay(0).tick(LACKING_SECONDS)
    uplink = hosts.job(0).uplink
    assert uplink.next_message(0) is not None
    assert uplink.next_message(0) is None
