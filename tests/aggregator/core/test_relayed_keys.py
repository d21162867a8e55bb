"""Broadcasts of an elastic job with relays, and keys that only some of its ranks use, at the owners of shards."""

import pytest

from psum.aggregator.core.actions import Ask
from psum.aggregator.core.elastic_job import ElasticJob
from psum.wire import ShardRound
from psum.wire.errors import ProtocolError, WorkerLostError
from tests.aggregator.core.owner import LIMITS, add_up, faults, hello, join_learning, loss, pull, push, relay, started
from tests.aggregator.keys import declare

# Broadcasts.


def broadcasting() -> tuple[ElasticJob, int, int]:
    job, [one, two] = started(relay(0, 1), relay(2, 3))
    for member in (one, two):
        assert declare(job, member, broadcast=True) == []
    return job, one, two


def test_the_value_of_a_broadcast_comes_from_the_member_that_stands_for_its_root() -> None:
    """It is told that all have asked; the others receive the value."""
    job, one, two = broadcasting()
    with pytest.raises(ProtocolError, match="ranks 2-3 contributed 4 bytes"):
        push(job, two, of=2)
    assert pull(job, two, of=2) == []
    assert add_up(job, push(job, one, of=2, value=5)) == (bytes([5] * 4), 0, (one, two), one)


def test_a_relay_may_go_on_without_its_root_before_the_owner_hears_of_that() -> None:
    """The round waits for the news. Then another rank is asked."""
    job, one, two = broadcasting()
    assert pull(job, one, of=1) == []
    assert pull(job, two, of=2) == []
    assert Ask(one, ((7, 0, 0),)) in job.leave_partly(one, [0])
    row = ShardRound(id=7, round=0, length=4)
    assert add_up(job, job.restore(one, row, memoryview(bytes([6] * 4))))[0] == bytes([6] * 4)


def test_a_lost_root_behind_a_relay_is_replaced_by_the_value_of_another_rank() -> None:
    """The relay goes on without a value; the owner asks the first member for its own."""
    job, one, two = broadcasting()
    assert pull(job, two, of=2) == []
    job.learn_losses(one, [loss(0)], 2.0)
    assert pull(job, one, of=1) == [Ask(one, ((7, 0, 0),))]
    row = ShardRound(id=7, round=0, length=4)
    assert add_up(job, job.restore(one, row, memoryview(bytes([6] * 4)))) == (bytes([6] * 4), 0, (one, two), -1)
    # In the next round there is no root either.
    assert pull(job, one, 1, of=1) == []
    assert pull(job, two, 1, of=2) == [Ask(one, ((7, 0, 1),))]


def test_the_value_of_a_root_that_was_lost_after_its_push_counts() -> None:
    """Before or after the owner hears of the loss."""
    job, one, two = broadcasting()
    assert push(job, one, of=2, value=5) == []
    job.learn_losses(one, [loss(0)], 2.0)
    assert add_up(job, pull(job, two, of=2)) == (bytes([5] * 4), 0, (one, two), one)
    job.learn_losses(two, [loss(3)], 2.0)
    pull(job, two, 1, of=1)
    assert add_up(job, push(job, one, 1, of=1, value=6)) == (bytes([6] * 4), 0, (one, two), one)


def test_the_value_of_a_lost_root_counts_at_an_owner_that_was_started_again() -> None:
    """Its relay had sent it before the loss, and sends it again. Nobody stands for the root here."""
    first = relay(1, resuming=True, losses=[loss(0)])
    job = ElasticJob(first, LIMITS)
    one = join_learning(job, first)
    two = join_learning(job, relay(2, 3, resuming=True))
    for member in (one, two):
        declare(job, member, broadcast=True)
    assert push(job, one, of=2, value=5) == []
    # It has the value, and the other one needs it.
    assert add_up(job, pull(job, two, of=2)) == (bytes([5] * 4), 0, (one, two), one)
    # In the next round there is no root, and a rank is asked for its own value.
    assert pull(job, one, 1, of=1) == []
    assert pull(job, two, 1, of=2) == [Ask(one, ((7, 0, 1),))]


def test_a_lost_root_is_replaced_after_all_others_have_asked() -> None:
    """If the relay that stood for it is gone, the next member is asked."""
    job, one, two = broadcasting()
    pull(job, two, of=2)
    actions = job.learn_losses(one, [loss(0), loss(1)], 2.0)
    assert Ask(two, ((7, 0, 0),)) in actions
    actions = job.restore(two, ShardRound(id=7, round=0, length=4), memoryview(bytes([6] * 4)))
    assert add_up(job, actions)[:3] == (bytes([6] * 4), 0, (two,))


# Keys of some ranks.


def test_a_key_of_some_ranks_waits_for_the_members_that_stand_for_them() -> None:
    """Also if a member stands for others too."""
    job, [one, two, worker] = started(relay(0, 1), relay(2), hello(3))
    assert declare(job, one, ranks=(1, 3), id=8) == []
    assert declare(job, worker, ranks=(1, 3), id=8) == []
    # Those of a relay's ranks that have used the key may have left before this aggregator was started again.
    assert declare(job, two, ranks=(1, 3), id=8) == []
    assert push(job, two, of=1, id=8) == []
    assert push(job, one, of=1, id=8) == []
    assert add_up(job, push(job, worker, id=8))[1:3] == (0, (one, worker))
    # Rank 1 is lost: its member goes on, but not with this key.
    push(job, worker, 1, id=8)
    assert add_up(job, job.learn_losses(one, [loss(1)], 2.0))[1:3] == (1, (worker,))
    assert not job.members.is_lost(one)


def test_a_broadcast_among_some_ranks_fails_if_its_root_behind_a_relay_is_lost() -> None:
    """Only the donor has anything to send; its relay is told, too."""
    job, [one, _, worker] = started(relay(0, 1), relay(2), hello(3))
    for member in (one, worker):
        declare(job, member, ranks=(1, 3), broadcast=True, id=8)
    pull(job, worker, of=0, id=8)
    [fault] = [each for each in faults(job.learn_losses(one, [loss(1)], 2.0)) if each.key == 8]
    assert isinstance(fault, WorkerLostError)
    assert "rank 1 of elastic job 'night'" in str(fault)
