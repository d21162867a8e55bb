"""Deciding what follows when a worker of an elastic job ends."""

from psum.cli.launch.workforce import MAX_FAILED_STARTS, State, Workforce


def test_a_worker_that_has_lived_for_long_is_replaced_at_once() -> None:
    """Its successor has to be admitted by the others. Until then it is none of those that are left."""
    force = Workforce(3, 2, replace=True, now=0.0)
    force.failed(1, 60.0, member=True)
    assert (force.left, force.over, force.due(60.0)) == (2, False, [1])
    force.started(1, 60.0)
    assert (force.state(1), force.has_been_member(1), force.left, force.next_start()) == (State.JOINING, True, 2, None)
    assert force.joined(1)
    assert not force.joined(1)
    assert (force.state(1), force.left) == (State.MEMBER, 3)


def test_the_first_process_of_a_rank_may_come_twice() -> None:
    """The job waits for a rank of which no process has joined yet, so nobody would admit its second process."""
    for minimum in (1, 2):
        force = Workforce(2, minimum, replace=True, now=0.0)
        force.failed(0, 1.0, member=False)
        assert (force.left, force.over) == (1, False)
        force.started(0, 2.0)
        assert (force.state(0), force.has_been_member(0), force.left) == (State.MEMBER, False, 2)


def test_a_job_of_too_few_members_is_over_though_processes_could_be_started() -> None:
    """They could not join: the others make no more steps. The same if no rank runs that could wait for them."""
    force = Workforce(2, 2, replace=True, now=0.0)
    force.failed(0, 60.0, member=True)
    assert (force.left, force.goes_on, force.over) == (1, False, True)
    force = Workforce(2, 2, replace=True, now=0.0)
    force.lost(0)
    force.failed(0, 1.0, member=False)
    assert (force.failed_starts(0), force.goes_on, force.over) == (1, False, True)
    force = Workforce(2, 1, replace=True, now=0.0)
    force.failed(0, 1.0, member=False)
    force.failed(1, 1.0, member=False)
    assert (force.enough, force.over) == (False, True)


def test_pauses_grow_while_processes_end_at_once() -> None:
    """A process that stays for a while ends that. Pauses do not grow for ever."""
    force = Workforce(2, 1, replace=True, now=0.0)
    now, pauses = 0.0, []
    for lived in (1.0,) * 9 + (20.0, 1.0):
        now += lived
        force.failed(1, now, member=True)
        pauses.append(force.pause(1, now))
        assert force.due(now + pauses[-1]) == [1]
        assert force.next_start() == now + pauses[-1]
        now += pauses[-1]
        force.started(1, now)
        force.joined(1)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 0, 0.5]


def test_processes_that_never_join_are_not_started_for_ever() -> None:
    """The job goes on without this rank. A process that joins in between ends the row."""
    force = Workforce(3, 2, replace=True, now=0.0)
    force.failed(2, 100.0, member=True)
    for start in range(1, MAX_FAILED_STARTS + 1):
        assert force.state(2) is State.DUE
        force.started(2, 100.0)
        force.failed(2, 101.0, member=False)
        assert force.failed_starts(2) == start
    assert (force.state(2), force.left, force.over, force.next_start()) == (State.GONE, 2, False, None)
    force.failed(1, 102.0, member=False)
    force.started(1, 103.0)
    force.joined(1)
    assert force.failed_starts(1) == 0


def test_where_nobody_knows_whether_it_had_joined_its_life_tells() -> None:
    """A process that has lived for some time counts as one that had."""
    force = Workforce(3, 1, replace=True, now=0.0)
    force.failed(1, 60.0, member=None)
    force.failed(2, 1.0, member=None)
    assert (force.has_been_member(1), force.has_been_member(2)) == (True, False)


def test_the_job_is_over_when_no_member_runs() -> None:
    """Ranks that have ended well count as left. A process that has not joined by then comes too late."""
    force = Workforce(3, 2, replace=True, now=0.0)
    force.failed(0, 60.0, member=True)
    force.started(0, 60.0)
    force.finished(1)
    assert not force.over
    force.finished(2)
    assert (force.over, force.enough, force.ranks(State.JOINING)) == (True, True, [0])


def test_the_job_is_over_when_too_few_are_left() -> None:
    """Also while new processes are about to join."""
    force = Workforce(3, 2, replace=False, now=0.0)
    force.failed(0, 60.0, member=True)
    assert (force.over, force.state(0)) == (False, State.GONE)
    force.failed(1, 60.0, member=True)
    assert (force.over, force.enough, force.left) == (True, False, 1)
