"""Two levels of relays in an elastic job, without I/O: hosts, a rack, and an owner."""

from typing import Any

import pytest

from psum.aggregator.core.actions import ConnectUplinks
from psum.aggregator.relay.core.elastic_host_job import ElasticHostJob
from psum.v1 import aggregator_pb2 as pb
from tests.aggregator.relay.elastic_hosts import NEWCOMER, Hosts, total
from tests.aggregator.relay.pure import Process, Uplinks, hello, key


class Rack(Hosts):
    """Two hosts whose relays forward to that of their rack, which sums four ranks for the owner."""

    def __init__(self) -> None:
        self.owner, self.rack = Process(300), Process(400)
        self.above: Uplinks | None = None
        super().__init__()

    def hello(self, rank: int, **change: Any) -> pb.Hello:
        said = super().hello(rank, **change)
        said.next_relays.add(address="rack:1", group_size=4)
        return said

    def settle(self) -> None:
        self.owners[:] = [self.rack]
        for uplinks in self.uplinks.values():
            uplinks.owners[:] = [self.rack]
        for _ in range(3):
            super().settle()
            for job in self.rack.groups.jobs.values():
                if self.above is None:
                    self.above = Uplinks(self.rack, job, [self.owner])
            if self.above is not None:
                self.above.run()
                self.above.job.check()
            for job in self.owner.fleet.jobs.values():
                job.check()

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.25)):
            for worker in (w for job in self.owner.fleet.jobs.values() for w in job.workers.values()):
                worker.last_heard = self.owner.now + 0.25
            self.owner.tick(0.25)
            super().pass_time(0.25)

    def lost(self) -> list[list[int]]:
        jobs = self.owner.fleet.jobs.values()
        return [list(status.lost) for job in jobs if (status := job.elastic_status(0.0)) is not None]


@pytest.fixture
def rack() -> Rack:
    return Rack()


def test_sums_pass_both_levels(rack: Rack) -> None:
    """The owner has one member that stands for all ranks."""
    rack.declare(key(0))
    rack.push(0, 1, 2, 3)
    assert [rack.results(rank) for rank in range(4)] == [[(total(0, 1, 2, 3), 0)]] * 4
    [job] = rack.owner.fleet.jobs.values()
    assert [worker.ranks for worker in job.workers.values()] == [(0, 1, 2, 3)]


def test_a_worker_is_lost_on_all_levels(rack: Rack) -> None:
    """The relay of its host tells that of the rack, which tells the owner. Counts are those of ranks."""
    rack.declare(key(0))
    rack.push(0, 2, 3)
    rack.kill(1)
    assert [rack.results(rank) for rank in (0, 2, 3)] == [[(total(0, 2, 3), 3)]] * 3
    assert rack.lost() == [[1]]


def test_a_host_is_lost_on_all_levels(rack: Rack) -> None:
    """The relay of the rack goes on with the other host."""
    rack.declare(key(0))
    rack.push(0, 1)
    rack.kill(2, 3)
    assert [rack.results(rank) for rank in (0, 1)] == [[(total(0, 1), 2)]] * 2
    assert rack.lost() == [[2, 3]]


def test_a_process_joins_through_both_levels(rack: Rack) -> None:
    """The owner decides, the relay of the rack passes the decision on, and that of the host lets the process in."""
    rack.declare(key(0))
    rack.push(0, 1, 2, 3)
    rack.kill(3)
    for rank in (0, 1, 2):
        rack.workers[rank].received()
    candidate = rack.wait(3)
    assert rack.candidates(0)[-1] == [3]
    rack.admit(3, by=[0, 1])
    assert rack.relays[1].decided == []
    rack.admit(3, by=[2])
    rack.workers[3] = rack.relays[1].let_in(candidate)
    rack.declare(key(0, round=1), 3)
    rack.push(0, 1, 2, round=1)
    assert rack.results(0) == []
    rack.push(3, round=1)
    assert [rack.results(rank) for rank in range(4)] == [[(total(0, 1, 2, 3), 0)]] * 4
    [job] = rack.owner.fleet.jobs.values()
    assert [worker.processes[3] for worker in job.workers.values()] == [(NEWCOMER, 1)]


def test_a_relay_of_relays_is_started_again_after_a_loss(rack: Rack) -> None:
    """The relays of hosts tell it which of their ranks are lost, so it waits for nobody."""
    rack.declare(key(0))
    rack.kill(3)
    assert rack.above is not None
    [(owner, peer)] = rack.above.pairs()
    owner.runner.perform(peer.job, peer.job.lost(peer.rank, owner.now, closed=True))
    owner.connections.pop((id(peer.job), peer.rank))
    rack.above, rack.rack = None, Process(401)
    rack.rack.now = owner.now
    for uplinks in rack.uplinks.values():
        uplinks.replace(0, rack.rack)
    rack.settle()
    rack.push(0, 1, 2)
    assert [rack.results(rank) for rank in (0, 1, 2)] == [[(total(0, 1, 2), 3)]] * 3
    assert rack.lost() == [[3]]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_relay_that_was_started_again_tells_the_next_one_of_losses_in_its_group(*, replaced: bool) -> None:
    """The next relay may have been started again too. It waits for nobody, also if a process elsewhere has the rank."""
    admissions = [pb.Admission(rank=1, generation=1, incarnation=NEWCOMER)] if replaced else []
    lost = pb.Loss(rank=1, text="gone", in_group=True)
    host, rack = Process(1), Process(2)
    worker = hello(0, elastic=pb.Elastic(min=1, max=8), resuming=True, losses=[lost], admissions=admissions)
    worker.next_relays.add(address="rack:1", group_size=2)
    job = host.join(worker).job
    assert isinstance(job, ElasticHostJob)
    said = job.hello(0, False)
    assert [(loss.rank, loss.in_group) for loss in said.losses] == [(1, True)]
    rack.join(said)
    assert ConnectUplinks() in rack.told
