"""Relays of an elastic job come back to an owner, and owners that were started again learn from them."""

from psum.aggregator.core.actions import Ask, EndStreams, Sum
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.registry import Registry
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import ExcludedError, TakenError
from tests.aggregator.core.owner import (
    LIMITS,
    add_up,
    hello,
    join,
    join_learning,
    loss,
    push,
    relay,
    started,
    told,
    two_groups,
)
from tests.aggregator.keys import declare

# The relay comes back.


def test_a_relay_is_known_again_by_the_processes_behind_it() -> None:
    """Also one that was started again, without ranks that it has lost: those are lost here too."""
    job, one, two = two_groups()
    push(job, two, of=2, value=8)
    job.lost(one, 2.0, closed=True)
    again = relay(1, resuming=True)
    actions, refusal = job.join(again, "peer", 3.0)
    assert refusal is None
    assert again.rank == one
    assert told(actions) == [([0], (one, two))]
    assert "came back without it" in job.losses(3.0)[0].text
    assert job.members.roster.known == (1, 2, 3)
    assert job.workers[one].connected
    assert add_up(job, push(job, one, of=1)) == (bytes([9] * 4), 3, (one, two), -1)
    job.check()


def test_a_rank_that_left_while_its_relay_was_away_is_not_lost() -> None:
    """The relay's hello names it among those that have left."""
    job, one, _ = two_groups()
    job.lost(one, 2.0, closed=True)
    departure = pb.Departure(ranks=[0], incarnation=100)
    actions, refusal = job.join(relay(1, resuming=True, departures=[departure]), "peer", 3.0)
    assert refusal is None
    assert told(actions) == []
    assert job.losses(3.0) == []
    assert job.members.roster.left == {0}
    job.check()
    job.leave(one, 4.0)
    assert [list(each.ranks) for each in job.departures()] == [[0], [1]]


def test_a_rank_whose_earlier_process_has_left_is_lost_if_its_relay_comes_back_without_it() -> None:
    """A member repeats all departures. That of another process says nothing of the one that was admitted since."""
    job, one, two = two_groups()
    job.lost(one, 2.0, closed=True)
    earlier = pb.Departure(ranks=[0], incarnation=99)
    actions, refusal = job.join(relay(1, resuming=True, departures=[earlier]), "peer", 3.0)
    assert refusal is None
    assert told(actions) == [([0], (one, two))]
    assert job.members.roster.left == set()
    assert job.members.roster.known == (1, 2, 3)
    job.check()


def test_a_relay_is_told_of_the_ranks_that_were_lost_while_it_was_away() -> None:
    """It goes on with the others. If all are lost it is refused."""
    job, one, two = two_groups()
    job.lost(one, 2.0, closed=True)
    job.learn_losses(two, [loss(0)], 2.5)
    again = relay(0, 1, resuming=True)
    assert job.join(again, "peer", 3.0) == ([], None)
    assert again.rank == one
    assert list(again.ranks) == [1]
    assert [each.rank for each in job.losses(3.0, one)] == [0]
    job.lost(one, 4.0, closed=True)
    job.learn_losses(two, [loss(1)], 4.5)
    _, refusal = job.join(relay(0, 1, resuming=True), "peer", 5.0)
    assert isinstance(refusal, ExcludedError)
    assert refusal.ranks == (0, 1)


def test_the_first_rank_of_a_relay_is_lost_and_admitted_elsewhere() -> None:
    """The relay goes on with its other ranks; the newcomer is a member of its own with the number of the rank."""
    job, one, two = two_groups()
    job.learn_losses(one, [loss(0)], 2.0)
    admission = pb.Admission(rank=0, generation=1, incarnation=900, ids=[7], rounds=[1])
    for member in (one, two):
        job.admit(member, admission, 3.0)
    assert job.members.roster.known == (0, 1, 2, 3)
    assert join(job, hello(0, incarnation=900, generation=1, resuming=True), 4.0) == 0
    assert job.members.roster.members == (0, one, two)
    # The round before the admission does not need the newcomer.
    push(job, one, of=1)
    assert add_up(job, push(job, two, of=2))[:3] == (bytes([2] * 4), 3, (one, two))
    declare(job, 0, 1)
    push(job, one, 1, of=1)
    push(job, two, 1, of=2)
    assert add_up(job, push(job, 0, 1))[:3] == (bytes([3] * 4), 0, (0, one, two))
    # Their losses are apart.
    job.learn_losses(two, [loss(0, 1)], 5.0)
    assert job.members.is_lost(0)
    assert not job.members.is_lost(one)
    again = relay(1, resuming=True, losses=[loss(0)])
    assert job.join(again, "peer", 6.0) == ([], None)
    assert again.rank == one


def test_a_relay_that_has_not_heard_of_an_admission_elsewhere_is_told() -> None:
    """Its process of that rank is out, though the rank is not lost."""
    job, one, two = two_groups()
    job.lost(one, 2.0, closed=True)
    job.admit(two, pb.Admission(rank=0, generation=1, incarnation=900), 3.0)
    again = relay(0, 1, resuming=True)
    actions, refusal = job.join(again, "peer", 3.0)
    assert refusal is None
    assert told(actions) == []
    assert list(again.ranks) == [1]
    assert [(each.rank, each.generation) for each in job.losses(3.0, one)] == [(0, 0)]
    assert job.losses(3.0, one) == []
    assert job.members.roster.known == (0, 1, 2, 3)


def test_a_process_that_has_taken_part_in_nothing_may_be_replaced() -> None:
    """Its relay is the same, with another process of the rank."""
    job, [one, two] = started(relay(0, 1), relay(2, 3))
    job.lost(one, 2.0, closed=True)
    again = relay(0, processes={1: (900, 0)})
    assert job.join(again, "peer", 3.0) == ([], None)
    assert again.rank == one
    # All of its processes are others.
    job.lost(two, 3.0, closed=True)
    again = relay(processes={2: (901, 0), 3: (902, 0)})
    assert job.join(again, "peer", 4.0) == ([], None)
    assert again.rank == two
    for member in (one, two):
        assert declare(job, member) == []
        push(job, member, of=2)
    job.lost(one, 5.0, closed=True)
    # By now it has: the process is lost, and so is the other one.
    again = relay(0, processes={1: (903, 0)}, resuming=True)
    actions, refusal = job.join(again, "peer", 6.0)
    assert refusal is None
    assert told(actions) == [([1], (one, two))]
    assert list(again.ranks) == [0]


def test_ranks_of_other_members_are_taken() -> None:
    """Groups do not share ranks, and a worker cannot take one of a relay's."""
    job, [one, _, _] = started(relay(0, 1), relay(2), hello(3))
    for each in (relay(processes={1: (900, 0), 2: (902, 0)}), hello(1, incarnation=5), relay(processes={3: (9, 0)})):
        _, refusal = job.join(each, "peer", 1.0)
        assert isinstance(refusal, TakenError)
    assert job.members.roster.ranks(one) == (0, 1)
    job.check()


# The owner comes back.


def test_an_owner_that_was_started_again_learns_a_group_that_has_shrunk() -> None:
    """From the relay's hello and the losses in it. The sum that only one group has is given back with its count."""
    job = ElasticJob(relay(1, resuming=True, losses=[loss(0)]), LIMITS)
    one = join_learning(job, relay(1, resuming=True, losses=[loss(0)]))
    assert declare(job, one, 3) == []
    two = join_learning(job, relay(2, 3, resuming=True))
    declare(job, two, 2)
    assert push(job, two, 2, of=2) == [Ask(one, ((7, 0, 2),))]
    row = ShardRound(id=7, round=2, length=4, contributors=3)
    [action] = job.restore(one, row, memoryview(bytes(4)))
    assert isinstance(action, Sum)
    [deliver] = job.restored(action.key, 0, 2, b"sum.")
    assert (deliver.ranks, deliver.contributors) == ((two,), 3)  # type: ignore[union-attr]
    push(job, one, 3, of=1)
    assert add_up(job, push(job, two, 3, of=2))[1] == 3


def test_a_relay_without_ranks_does_not_end_the_job_of_others() -> None:
    """It comes first to an owner that was started again, to say that its ranks are lost. A newcomer still lives."""
    registry = Registry(LIMITS)
    lost = [loss(rank) for rank in range(4)]
    job, _, refusal = registry.join(relay(0, 1, resuming=True, losses=lost), "peer", 0.0)
    assert isinstance(refusal, ExcludedError)
    assert refusal.ranks == (0, 1)
    assert job is not None
    assert job.failure is None
    newcomer = hello(5, incarnation=9, resuming=True, losses=lost)
    job, _, refusal = registry.join(newcomer, "peer", 1.0)
    assert refusal is None
    assert job is not None
    assert list(job.members.roster.known) == [5]


def test_an_owner_that_was_started_again_learns_the_newcomers_of_a_group() -> None:
    """A rank beyond those that the job began with, and a later process of a rank."""
    first = relay(0, processes={1: (900, 1), 5: (905, 0)}, resuming=True)
    job = ElasticJob(first, LIMITS)
    one = join_learning(job, first)
    assert job.members.roster.known == (0, 1, 2, 3, 5)
    assert job.members.generation(1) == 1
    assert job.members.roster.ranks(one) == (0, 1, 5)
    # The process of rank 1 before is out.
    _, refusal = job.join(hello(1, resuming=True), "peer", 1.0)
    assert isinstance(refusal, ExcludedError)


def test_ranks_behind_a_relay_have_as_long_as_a_relay_to_come_back() -> None:
    """Their relay may have been killed together with the owner."""
    job = ElasticJob(relay(0, 1, resuming=True), LIMITS)
    one = join_learning(job, relay(0, 1, resuming=True))
    for second in range(1, 31):
        job.workers[one].last_heard = float(second)
        assert told(job.tick(float(second))) == []
    job.workers[one].last_heard = 31.0
    assert told(job.tick(31.0)) == [([2, 3], (one,))]


def test_a_group_whose_relay_has_waited_for_one_of_its_ranks_is_not_lost() -> None:
    """The owner has seen no relay since it was started again, and the relay waits as long as owners do for one rank."""
    job, [worker] = started(hello(3, resuming=True))
    for tenth in range(1, 60):
        job.workers[worker].last_heard = tenth / 10
        assert told(job.tick(tenth / 10)) == []
    group = join(job, relay(1, 2, resuming=True), 6.0)
    assert job.members.roster.living(group) == (1, 2)
    # Now that it has seen one, the last rank may be behind another.
    for second in range(7, 31):
        for member in (worker, group):
            job.workers[member].last_heard = float(second)
        assert told(job.tick(float(second))) == []
    job.workers[worker].last_heard = 31.0
    assert told(job.tick(31.0)) == [([0], (worker, group))]


def test_several_ranks_that_are_behind_no_relay_are_lost_in_twice_the_time() -> None:
    """Nothing tells an owner that was started again that no relay waits for them."""
    job, [worker] = started(hello(3, resuming=True))
    for second in range(1, 11):
        job.workers[worker].last_heard = float(second)
        assert told(job.tick(float(second))) == []
    assert told(job.tick(10.5)) == [([0, 1, 2], (worker,))]


def test_an_owner_that_may_have_learned_from_a_lost_rank_begins_again() -> None:
    """What a relay declares may stem from any of its ranks."""
    job = ElasticJob(relay(0, 1, resuming=True), LIMITS)
    one = join_learning(job, relay(0, 1, resuming=True))
    two = join_learning(job, relay(2, 3, resuming=True))
    declare(job, one, 3)
    actions = job.learn_losses(two, [loss(1)], 1.0)
    assert told(actions) == [([1], (one,))]
    assert EndStreams((one, two)) in actions
    assert job.keys == {}


def test_a_relay_that_left_before_the_restart_comes_back_to_repeat_its_goodbye() -> None:
    """It has not heard that it may go. Rounds do not wait for it meanwhile."""
    departures = [pb.Departure(ranks=[rank], incarnation=100 + rank) for rank in (0, 1)]
    first = relay(2, 3, resuming=True, departures=departures)
    job = ElasticJob(first, LIMITS)
    two = join_learning(job, first)
    assert job.members.roster.known == (2, 3)
    one = join_learning(job, relay(0, 1, resuming=True))
    assert job.members.roster.known == (2, 3)
    assert not job.members.is_lost(one)
    declare(job, two, 4)
    assert add_up(job, push(job, two, 4, of=2))[1] == 2
    job.leave(one, 2.0)
    assert job.workers[one].left
    job.check()


def test_what_left_before_others_were_admitted_is_no_news() -> None:
    """A member repeats all departures. One whose rank another process has taken since, and which is lost, is past."""
    old = pb.Departure(ranks=[3], incarnation=103)
    first = relay(0, 1, 2, resuming=True, departures=[old], losses=[loss(3, 1)])
    job = ElasticJob(first, LIMITS)
    join_learning(job, first)
    assert job.members.roster.lost == {3}
    assert job.members.roster.left == set()
    assert job.departures() == []
