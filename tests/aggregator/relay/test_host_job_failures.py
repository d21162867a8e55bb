"""What fails in one group fails in all, with the reason of the rank that failed."""

import pytest

from psum.aggregator.core.actions import SendUplinks
from psum.aggregator.core.limits import Limits
from psum.aggregator.relay.core.lacking_ranks import LACKING_SECONDS
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import InternalError
from tests.aggregator.relay.hosts import Hosts, two_hosts
from tests.aggregator.relay.pure import Process, Uplinks, hello, key, push

hosts = pytest.fixture(two_hosts)


def test_a_key_that_fails_in_a_group_fails_everywhere(hosts: Hosts) -> None:
    """A rank that cannot contribute fails the key in all groups, with the rank's own reason."""
    hosts.declare(key(0))
    hosts.relay(1).say(hosts.workers[1], abort=pb.Abort(id=7, round=0, text="the lights went out"))
    hosts.settle()
    for worker in hosts.workers:
        [fault] = worker.faults()
        assert (fault.id, fault.code) == (7, pb.FAULT_CODE_ABORTED)
        assert "the lights went out" in fault.text


def test_an_owner_s_fault_is_told_verbatim(hosts: Hosts) -> None:
    """What fails at the owner fails in the groups with the same text."""
    hosts.declare(key(0), [0, 1])
    hosts.declare(key(0, elements=8), [2, 3])
    told = [worker.faults() for worker in hosts.workers]
    assert len({faults[0].text for faults in told}) == 1
    assert "ranks 0-1" in told[0][0].text
    assert "ranks 2-3" in told[0][0].text


def test_the_ranks_of_a_group_are_named_whose_workers_were_all_replaced(hosts: Hosts) -> None:
    """One of them had taken part. For the relay that is another run; the other group hears which ranks were lost."""
    hosts.declare(key(0))
    hosts.push(ranks=[3])
    for rank in (2, 3):
        hosts.relay(rank).runner.perform(hosts.job(1), hosts.job(1).lost(rank, 0.0, closed=True))
    relay = hosts.relays[1]
    relay.now = 2.0
    relay.join(hello(2, incarnation=999, age_seconds=1.0, worker="host pid 999"))
    hosts.settle()
    for worker in hosts.workers[:2]:
        [fault] = worker.faults()
        assert (fault.code, list(fault.ranks)) == (pb.FAULT_CODE_WORKER_LOST, [2, 3])
        assert "vanished, and host pid 999 (peer:2) was started in their place" in fault.text


def test_a_lost_worker_fails_the_job_everywhere_and_is_named(hosts: Hosts) -> None:
    """All ranks hear which rank vanished, and not that a relay did."""
    hosts.declare(key(0))
    hosts.relay(3).runner.perform(hosts.job(1), hosts.job(1).lost(3, 0.0, closed=True))
    hosts.tick(31)
    for rank in (0, 1, 2):
        [fault] = hosts.workers[rank].faults()
        assert fault.code == pb.FAULT_CODE_WORKER_LOST
        assert list(fault.ranks) == [3]
        assert fault.text.startswith("rank 3 of job 'night'")


def test_an_incomplete_group_tells_the_others_why_it_failed() -> None:
    """A group fails before all its ranks have joined. The other group hears of it, and does not wait for it."""
    owner, one, two = Process(100), Process(1), Process(2)
    others = [two.join(hello(rank)) for rank in (2, 3)]
    Uplinks(two, others[0].job, [owner]).run()
    first = one.join(hello(0))
    _, actions, refusal = one.groups.join(hello(1, num_workers=6), "peer:1", 0.0)
    assert refusal is not None
    for job, action in actions:
        one.runner.perform(job, [action])
    Uplinks(one, first.job, [owner]).run()
    [fleet] = owner.fleet.jobs.values()
    assert fleet.failure is not None
    assert str(fleet.failure) == str(refusal)


@pytest.mark.parametrize("how", ["abort", "deserted", "timeout"])
def test_the_uplinks_are_woken_when_a_key_fails(how: str) -> None:
    """A connection that has nothing else to send sends the abort at once: otherwise other groups wait for it."""
    hosts = Hosts()
    hosts.declare(key(0))
    relay = hosts.relay(0)
    if how == "abort":
        relay.say(hosts.workers[0], abort=pb.Abort(id=7, text="no memory"))
    elif how == "deserted":
        relay.say(hosts.workers[1], goodbye=pb.Goodbye())
        relay.told.clear()
        relay.say(hosts.workers[0], **push(b"abcd"))
    else:
        relay.say(hosts.workers[0], **push(b"abcd"))
        relay.tick(2 * LACKING_SECONDS)
        relay.told.clear()
        relay.tick(Limits().round_timeout)
    assert hosts.job(0).keys[7].failure is not None
    assert SendUplinks() in relay.told


def test_nothing_follows_from_what_comes_after_a_failure(hosts: Hosts) -> None:
    """The job may have been released: what it asked of its uplinks then would make new ones, which nobody ends."""
    hosts.declare(key(0))
    job, relay = hosts.job(0), hosts.relay(0)
    relay.say(hosts.workers[0], **push(b"abcd"))
    relay.say(hosts.workers[0], goodbye=pb.Goodbye())
    relay.runner.perform(job, job.fail(InternalError("for some reason"), relay.now))
    job.uplink.handle(0, pb.ExchangeResponse(sync=pb.Sync(number=2)), memoryview(b""), (), relay.now)
    assert job.heard(relay.now) == []
