"""Which rounds a relay and the owner in its process finish before the process ends."""

import pytest

from psum.aggregator.relay.core.drain_plan import Round, plan, still_open
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, to_columns
from tests.aggregator.relay.pure import Peer, Process, Uplinks, hello, key, push

ROUND: Round = (7, 0, 0)


class Host:
    """A process that relays for ranks 0 and 1 and owns the shards; rank 2 contributes without a relay."""

    def __init__(self) -> None:
        self.process = Process(1)
        self.local = [self.process.join(hello(rank, num_workers=3)) for rank in range(2)]
        self.other = self.process.join(hello(2, group=0, num_workers=3))
        self.uplinks = Uplinks(self.process, self.local[0].job, [self.process])
        self.uplinks.run()
        for worker in (*self.local, self.other):
            self.process.say(worker, declare=pb.Declare(keys=[key(0)]))
        self.uplinks.run()

    def contribute(self, *workers: Peer) -> None:
        for worker in workers:
            self.process.say(worker, **push(b"1234"))
        self.uplinks.run()

    def plan(self, *, own: bool = True) -> tuple[set[Round], set[Round]]:
        """The rounds that the group finishes, and those that the owner finishes."""
        fleet = self.process.fleet.jobs["night"]
        fleet_rounds = set(fleet.open_rounds())
        return plan(self.uplinks.job, {0} if own else set(), fleet, fleet_rounds), fleet_rounds


@pytest.fixture
def host() -> Host:
    return Host()


def test_what_nobody_has_begun_waits_for_the_next_process(host: Host) -> None:
    """No round is open, so none is finished."""
    assert host.plan() == (set(), set())


def test_a_round_that_the_group_has_begun_is_finished_by_the_owner(host: Host) -> None:
    """Otherwise the owner would not take the group's sum."""
    host.contribute(host.local[0])
    assert host.plan() == ({ROUND}, {ROUND})


def test_a_round_that_another_group_has_begun_is_finished_by_this_group(host: Host) -> None:
    """Otherwise its ranks would keep their contributions for the next process."""
    host.contribute(host.other)
    assert host.plan() == ({ROUND}, {ROUND})


def test_a_round_that_a_missing_rank_must_finish_is_left(host: Host) -> None:
    """A rank of the group is not connected, and the process takes no streams: neither half waits for the round."""
    host.contribute(host.other)
    host.local[1].job.lost(1, 0.0)
    assert host.plan() == (set(), set())


def test_a_round_that_needs_a_missing_rank_at_the_owner_is_left(host: Host) -> None:
    """The other way round: the rank without a relay is not connected."""
    host.contribute(host.local[0])
    host.other.job.lost(2, 0.0)
    assert host.plan() == (set(), set())


def test_a_round_whose_owner_ends_too_is_left(host: Host) -> None:
    """An owner elsewhere that drains takes no contribution to a round that it does not list."""
    host.contribute(host.local[0])
    assert host.plan(own=False)[0] == {ROUND}
    host.uplinks.job.uplink.handle(0, pb.ExchangeResponse(drain=pb.Drain()), memoryview(b""), (), 0.0)
    assert host.plan(own=False)[0] == set()
    listed = pb.Drain(open=to_columns([ShardRound(*ROUND)]))
    host.uplinks.job.uplink.handle(0, pb.ExchangeResponse(drain=listed), memoryview(b""), (), 0.0)
    assert host.plan(own=False)[0] == {ROUND}


def test_a_round_whose_other_members_have_gone_is_waited_for_no_longer(host: Host) -> None:
    """The group's sum has gone on to the owner here, which waits for a member whose own process has ended."""
    host.contribute(*host.local)
    fleet = host.process.fleet.jobs["night"]
    assert still_open(host.uplinks.job, {0}, fleet) == {ROUND}
    fleet.lost(2, 0.0)
    assert still_open(host.uplinks.job, {0}, fleet) == set()
