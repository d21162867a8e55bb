"""Who is a candidate, who was admitted, and what aggregators are told of that."""

from psum.client.core.admissions import Admissions
from psum.client.core.roll_call import Process
from psum.v1 import aggregator_pb2 as pb


def candidate(rank: int, incarnation: int) -> pb.Candidate:
    return pb.Candidate(rank=rank, incarnation=incarnation, worker=f"host:{incarnation}")


def test_the_lowest_candidate_is_named_that_all_aggregators_report() -> None:
    """Only then it has a stream to each of them. A report replaces the one before, and a broken stream ends it."""
    admissions = Admissions(2, 2)
    admissions.note(0, [candidate(3, 7), candidate(2, 6), candidate(1, 5)])
    assert admissions.candidate is None
    admissions.note(1, [candidate(2, 6), candidate(3, 7), candidate(1, 4)])
    assert admissions.candidate == Process(2, 6)
    assert admissions.waiting[Process(1, 4)] == "host:4"
    admissions.note(0, [candidate(3, 7)])
    assert admissions.candidate == Process(3, 7)
    admissions.forget(1)
    assert admissions.candidate is None


def test_generations_count_the_processes_of_a_rank() -> None:
    """The first process of a rank of the nominal size begins with the job; that of a further rank is admitted."""
    admissions = Admissions(1, 2)
    assert [admissions.admit(Process(rank, 5), {}) for rank in (1, 1, 2, 2)] == [1, 2, 0, 1]
    assert [admissions.generation(rank) for rank in range(4)] == [0, 2, 1, 0]


def test_each_aggregator_is_told_once_and_in_each_hello() -> None:
    """The rounds are in hellos until the join is over. The admission itself stays: an aggregator that is started again
    must know which process a rank has."""
    admissions = Admissions(2, 2)
    admissions.admit(Process(1, 9), {0: {11: 3, 12: 4}, 1: {13: 0}})
    whole = [
        pb.Admission(rank=1, generation=1, incarnation=9, ids=[11, 12], rounds=[3, 4]),
        pb.Admission(rank=1, generation=1, incarnation=9, ids=[13], rounds=[0]),
    ]
    assert [admissions.take_news(0), admissions.take_news(1), admissions.take_news(0)] == [*whole, None]
    assert [admissions.for_hello(aggregator) for aggregator in (0, 1)] == [whole[:1], whole[1:]]
    admissions.complete()
    short = pb.Admission(rank=1, generation=1, incarnation=9)
    assert admissions.for_hello(0) == admissions.for_hello(1) == [short]


def test_a_newcomer_learns_earlier_admissions() -> None:
    """It counts generations as the others do. What it knows better stays."""
    admissions = Admissions(1, 2)
    admissions.learn([pb.Admission(rank=1, generation=3, incarnation=9, ids=[1], rounds=[2])])
    admissions.learn([pb.Admission(rank=0, generation=1, incarnation=8), pb.Admission(rank=1, generation=2)])
    assert admissions.next_generation(0) == 2
    assert admissions.next_generation(1) == 4
    assert admissions.for_hello(0) == [
        pb.Admission(rank=0, generation=1, incarnation=8),
        pb.Admission(rank=1, generation=3, incarnation=9),
    ]


def test_a_relay_is_told_which_newcomers_have_waited_there() -> None:
    """It repeats that in each hello. What others have told of their relays does not matter to this one."""
    admissions = Admissions(1, 2)
    admissions.note(0, [pb.Candidate(rank=1, incarnation=9, in_group=True), candidate(2, 5)])
    admissions.admit(Process(1, 9), {0: {11: 3}})
    admissions.complete()
    admissions.admit(Process(2, 5), {0: {11: 4}})
    assert [(each.rank, each.in_group) for each in admissions.for_hello(0)] == [(1, True), (2, False)]
    newcomer = Admissions(1, 2)
    newcomer.learn(admissions.for_hello(0))
    assert [(each.rank, each.in_group) for each in newcomer.for_hello(0)] == [(1, False), (2, False)]
