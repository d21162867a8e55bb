"""The workers of a relay's group are told what they wait for, also if the owner of a shard says nothing."""

import pytest

from tests.aggregator.relay.hosts import Hosts, two_hosts
from tests.aggregator.relay.pure import key, push

hosts = pytest.fixture(two_hosts)

_OWNER_SECONDS = 30.0
"""After so long an owner warns of a round."""

_RELAY_SECONDS = 45.0
"""After so long a relay warns of an owner that says nothing."""

_RESULT = "key 'w' round 0: the relay on host1 pid 1 for ranks 0-1 has had all contributions of its group for"


def notices(hosts: Hosts, rank: int) -> list[str]:
    """What a worker was told since the last call."""
    return [message.notice.text for message, _ in hosts.workers[rank].received() if message.HasField("notice")]


def begin(hosts: Hosts) -> None:
    """All ranks know a key, and the first group has contributed to its first round."""
    hosts.declare(key(0))
    for rank in (0, 1):
        hosts.relay(rank).say(hosts.workers[rank], **push(bytes(4)))
    notices(hosts, 0)


def test_the_relay_adds_nothing_to_what_an_owner_says(hosts: Hosts) -> None:
    """The owner's warning names the ranks of the other group."""
    begin(hosts)
    hosts.settle()
    hosts.tick(_OWNER_SECONDS)
    [text] = notices(hosts, 0)
    assert "waits for ranks 2-3" in text
    for _ in range(3):
        hosts.tick(9.0)
    assert notices(hosts, 0) == []


def test_an_owner_that_lacks_the_contribution_is_named(hosts: Hosts) -> None:
    """Whatever went wrong, the owner waits for nobody that it could name to this group."""
    begin(hosts)
    while hosts.job(0).uplink.next_message(0) is not None:
        # It does not arrive.
        pass
    hosts.tick(_OWNER_SECONDS)
    assert notices(hosts, 0) == []
    hosts.tick(_RELAY_SECONDS - _OWNER_SECONDS)
    [text] = notices(hosts, 1)
    assert f"{_RESULT} 45 s, and no result from aggregator owner0:1, which does not say what it waits for" in text
    hosts.tick(1.0)
    assert notices(hosts, 1) == []
    # Again when the wait has doubled.
    hosts.tick(_RELAY_SECONDS)
    [text] = notices(hosts, 1)
    assert f"{_RESULT} 91 s" in text


def test_an_owner_without_a_connection_is_named(hosts: Hosts) -> None:
    """The relay is still trying to reach it."""
    hosts.declare(key(0))
    uplink = hosts.job(0).uplink
    uplink.disconnected(0)
    for rank in (0, 1):
        hosts.relay(rank).say(hosts.workers[rank], **push(bytes(4)))
    hosts.relay(0).tick(_RELAY_SECONDS)
    [text] = notices(hosts, 0)
    assert f"{_RESULT} 45 s, and no result from aggregator owner0:1, to which it has no connection" in text
    uplink.reconnected(0)
    assert uplink.unreached(0) == []


def test_an_owner_that_others_wait_for_is_named() -> None:
    """Nothing is sent to any owner before all have let the group in."""
    hosts = Hosts(owners=2)
    hosts.declare(key(0))
    uplink = hosts.job(0).uplink
    uplink.await_all()
    uplink.let_in(0)
    for rank in (0, 1):
        hosts.relay(rank).say(hosts.workers[rank], **push(bytes(4)))
    hosts.relay(0).tick(_RELAY_SECONDS)
    [text] = notices(hosts, 0)
    assert "from aggregator owner0:1, and sends nothing while it has no connection to owner1:1" in text


def test_an_answered_round_is_not_warned_of(hosts: Hosts) -> None:
    """However long the next one is not begun."""
    hosts.declare(key(0))
    hosts.push()
    hosts.tick(2 * _RELAY_SECONDS)
    assert notices(hosts, 0) == []
