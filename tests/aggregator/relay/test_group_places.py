"""All workers of a group vanish before they took part in anything: their places are kept, as the other groups wait."""

import pytest

from psum.v1 import aggregator_pb2 as pb
from tests.aggregator.relay import elastic_hosts
from tests.aggregator.relay.elastic_hosts import total
from tests.aggregator.relay.hosts import SUM, Hosts, two_hosts
from tests.aggregator.relay.pure import Peer, Process, Uplinks, hello, key
from tests.aggregator.relay.test_elastic_levels import Rack

hosts = pytest.fixture(two_hosts)


def vanish(relay: Process, *workers: Peer) -> None:
    """The processes of some workers end."""
    for worker in workers:
        relay.runner.perform(worker.job, worker.job.lost(worker.rank, relay.now, closed=True))
        del relay.connections[id(worker.job), worker.rank]


def replacement(said: pb.Hello, age: float = 0.5) -> pb.Hello:
    """The hello of another process of a worker's rank."""
    said.incarnation, said.worker, said.age_seconds = 900 + said.rank, f"host pid {900 + said.rank}", age
    return said


@pytest.mark.parametrize("order", [(2, 3), (3, 2)])
def test_a_group_is_replaced_one_after_the_other(hosts: Hosts, order: tuple[int, int]) -> None:
    """The other group has contributed, and gets the sum of all."""
    hosts.declare(key(0), [0, 1])
    hosts.push(ranks=[0, 1])
    vanish(hosts.relays[1], *hosts.workers[2:])
    hosts.tick(2.0)
    for rank in order:
        hosts.workers[rank] = hosts.relays[1].join(replacement(hello(rank)))
        hosts.settle()
    hosts.declare(key(0), [2, 3])
    hosts.push(ranks=[2, 3])
    assert [worker.results() for worker in hosts.workers] == [[SUM]] * 4


def test_the_place_of_one_that_is_not_replaced_is_kept_for_its_time(hosts: Hosts) -> None:
    """Then the job fails, and the error names only this rank."""
    vanish(hosts.relays[1], *hosts.workers[2:])
    hosts.tick(2.0)
    hosts.workers[2] = hosts.relays[1].join(replacement(hello(2)))
    hosts.settle()
    hosts.tick(27.5)
    assert hosts.job(1).failure is None
    hosts.tick(1.0)
    for rank in (0, 1, 2):
        [fault] = hosts.workers[rank].faults()
        assert (fault.code, list(fault.ranks)) == (pb.FAULT_CODE_WORKER_LOST, [3])
        assert "rank 3 of job 'night', host pid 103 (peer:3), vanished 30.5 s ago" in fault.text


@pytest.mark.parametrize("rank", [2, 3])
def test_the_first_worker_of_a_group_vanishes_before_the_others_have_come(rank: int) -> None:
    """Another process of its rank, or the next rank, does not begin another run: the group goes on to gather."""
    owner, one, two = Process(100), Process(1), Process(2)
    others = [one.join(hello(rank)) for rank in (0, 1)]
    above = Uplinks(one, others[0].job, [owner])
    above.run()
    first = two.join(hello(2))
    vanish(two, first)
    two.tick(2.0)
    for came in (rank, 5 - rank):
        assert two.join(replacement(hello(came))).job is first.job
    Uplinks(two, first.job, [owner]).run()
    above.run()
    [fleet] = owner.fleet.jobs.values()
    assert fleet.complete
    assert [worker.faults() for worker in others] == [[], []]


def test_a_relay_of_relays_waits_for_one_that_took_part() -> None:
    """All its relays are away. One has another group, which had taken part in nothing; the other one comes back."""
    rack = Process(1)
    said = [hello(rank, ranks=[rank, rank + 1], group=4, num_workers=8) for rank in (0, 2)]
    relays = [rack.join(each) for each in said]
    job = relays[0].job
    job.workers[2].contributed = True
    vanish(rack, *relays)
    rack.tick(2.0)
    assert rack.join(replacement(said[0])).job is job
    said[1].resuming = True
    assert rack.join(said[1]).job is job


@pytest.mark.parametrize("change", [{"partition_bytes": 2048}, {"rank": 0}], ids=["settings", "rank"])
def test_a_process_of_another_run_does_not_take_a_place(hosts: Hosts, change: dict[str, int]) -> None:
    """It was started with other settings, or on another host than its rank before. The others hear who vanished."""
    before = hosts.job(1)
    vanish(hosts.relays[1], *hosts.workers[2:])
    hosts.tick(2.0)
    job = hosts.relays[1].join(replacement(hello(**{"rank": 2} | change))).job
    assert job is not before
    hosts.settle()
    for worker in hosts.workers[:2]:
        [fault] = worker.faults()
        assert (fault.code, list(fault.ranks)) == (pb.FAULT_CODE_WORKER_LOST, [2, 3])


@pytest.mark.parametrize("seconds", [0.5, 3.0])
@pytest.mark.parametrize("make", [elastic_hosts.Hosts, Rack], ids=["one level", "two levels"])
def test_a_group_of_an_elastic_job_is_replaced(make: type[elastic_hosts.Hosts], seconds: float) -> None:
    """Its ranks are not lost within the time for which a place is kept, and the sum counts all."""
    hosts = make()
    hosts.declare(key(0), 0, 1)
    hosts.push(0, 1)
    vanish(hosts.relays[1], hosts.workers.pop(2), hosts.workers.pop(3))
    hosts.pass_time(seconds)
    for rank in (2, 3):
        hosts.workers[rank] = hosts.relays[1].join(replacement(hosts.hello(rank), age=seconds / 2))
        hosts.settle()
    assert hosts.lost() == [[]]
    hosts.declare(key(0), 2, 3)
    hosts.push(2, 3)
    for rank in range(4):
        # Without a number, the sum counts as many ranks as the job began with.
        assert hosts.results(rank) == [(total(0, 1, 2, 3), 0)]


def test_a_process_that_comes_for_a_rank_of_an_elastic_group_that_took_part_does_not_take_the_group_with_it() -> None:
    """Only the rank whose process is replaced is lost at once. The new process is refused, and asks to join."""
    hosts = elastic_hosts.Hosts()
    hosts.declare(key(0))
    hosts.push(0, 1, 2, 3)
    vanish(hosts.relays[1], hosts.workers.pop(2), hosts.workers.pop(3))
    hosts.pass_time(0.5)
    relay = hosts.relays[1]
    _, actions, refusal = relay.groups.join(replacement(hosts.hello(2), age=0.25), "peer:2", relay.now)
    for job, action in actions:
        relay.runner.perform(job, [action])
    assert refusal is not None
    hosts.pass_time(0.25)
    assert hosts.lost() == [[2]]
    hosts.pass_time(1.0)
    assert hosts.lost() == [[2, 3]]
