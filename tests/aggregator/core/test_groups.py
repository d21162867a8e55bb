"""A relay's group: so many ranks of a job, whose numbers are known when they join."""

from typing import Any

import pytest

from psum.aggregator.core.actions import Deliver, Sum, Warn
from psum.aggregator.core.job import Job
from psum.aggregator.core.registry import Registry
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import DisagreementError, InvalidError, TakenError, WorkerLostError
from tests.aggregator.core.members import LIMITS, faults, hello, refusal, started
from tests.aggregator.keys import FOUR, entry, key


def worker(rank: int, **change: Any) -> pb.Hello:
    """The hello of a worker to a relay whose group has two ranks, of eight."""
    return hello([rank], **{"num_workers": 8, "group_size": 2} | change)


@pytest.mark.parametrize(
    ("size", "ranks"), [(6, [0]), (1, [0, 1])], ids=["larger than the job", "smaller than a member"]
)
def test_groups_that_make_no_sense_are_refused(size: int, ranks: list[int]) -> None:
    """A group has no more ranks than the job, and no fewer than a relay that is a member of it."""
    _, _, refused = Registry(LIMITS).join(hello(ranks, group_size=size), "peer", 0.0)
    assert isinstance(refused, InvalidError)
    assert f"in a group of {size} of 5 workers" in str(refused)


def test_a_group_is_complete_when_as_many_ranks_have_joined() -> None:
    """Their numbers are known only when they join. The sum is in rank order."""
    job = Job(worker(6), LIMITS)
    assert job.join(worker(6), "peer:6", 0.0) == ([], None)
    job.declare(6, key(), 0.0)
    assert job.contribute(6, entry(), FOUR, 1.0) == []
    [shard] = job.keys[7].shards.values()
    assert (list(shard.waiting_for()), shard.missing, job.num_workers) == ([], 1, 2)
    [warning] = [action for action in job.tick(40.0) if isinstance(action, Warn)]
    assert "waits for 1 of the 2 ranks of this group, which have not joined (PSUM_LOCAL_SIZE must be" in warning.text
    assert job.join(worker(3), "peer:3", 50.0) == ([], None)
    assert job.complete
    job.declare(3, key(), 50.0)
    assert list(shard.waiting_for()) == [3]
    one = memoryview(b"3333")
    [action] = job.contribute(3, entry(), one, 51.0)
    assert isinstance(action, Sum)
    assert action.contributions == (one, FOUR)
    [deliver] = job.summed(action.key, 0, "sum")
    assert isinstance(deliver, Deliver)
    assert deliver.ranks == (3, 6)
    job.check()


def test_a_group_has_members_that_are_relays() -> None:
    """A relay further up gathers ranks of relays and of workers."""
    job = started(hello([2, 3], group_size=3), hello([4], group_size=3))
    assert job.complete
    job.contribute(4, entry(), FOUR, 1.0)
    [action] = job.contribute(2, entry(), FOUR, 1.0)
    assert isinstance(action, Sum)
    job.check()


def test_a_full_group_takes_no_other_rank() -> None:
    """The error names the ranks and processes that are there. The group goes on."""
    job = started(worker(6), worker(3))
    refused = refusal(job, worker(5))
    assert isinstance(refused, DisagreementError)
    assert (
        "the group of job 'night' on this relay has 2 ranks, and there are rank 6 (h6 pid 7 (peer:6)), rank 3"
        " (h3 pid 7 (peer:3)); refused rank 5, h5 pid 7 (peer:9). A relay serves the workers of one host"
    ) in str(refused)
    assert isinstance(refusal(job, worker(6, incarnation=9)), TakenError)


def test_a_group_that_cannot_become_complete_fails() -> None:
    """A relay with too many ranks comes while others are missing."""
    job = started(hello([2, 3], group_size=3))
    actions, refused = job.join(hello([0, 1], group_size=3), "peer:9", 1.0)
    assert faults(actions) == [refused]
    assert isinstance(refused, DisagreementError)


@pytest.mark.parametrize(
    ("change", "both_sides"),
    [
        ({"group_size": 3}, "rank 6 has 2, rank 3 has 3"),
        ({"num_workers": 9}, r"PSUM_NUM_WORKERS\): rank 6 has 8, rank 3 has 9. Rank 6 is h6 pid 7"),
        (
            {"next_relays": [pb.Relay(address="rack:1", group_size=4)]},
            r"the relays further up \(PSUM_RELAY\): rank 6 has \[\], rank 3 has \[\('rack:1', 4\)\]",
        ),
    ],
)
def test_ranks_of_a_group_agree_on_it(change: dict[str, Any], both_sides: str) -> None:
    """On its size and on the relays further up; the error shows both sides."""
    job = started(worker(6))
    actions, refused = job.join(worker(3, **change), "peer:3", 1.0)
    assert faults(actions) == [refused]
    with pytest.raises(DisagreementError, match=both_sides):
        raise refused or AssertionError("no refusal")


def test_ranks_of_a_group_that_do_not_come_back_are_counted() -> None:
    """A relay that was started again does not know their numbers."""
    job = started(worker(6, resuming=True))
    [fault] = faults(job.tick(31.0))
    assert fault.ranks == ()
    assert "1 of the 2 ranks of a relay's group of job 'night' did not come back" in str(fault)


def test_a_worker_of_a_restarted_relay_that_leaves_stays_for_ranks_that_are_not_back() -> None:
    """They may need its sums, whatever their numbers are."""
    job = started(worker(6, resuming=True))
    assert job.leave(6, 1.0) == []
    assert job.workers[6].release_at is not None


def test_another_rank_that_comes_to_a_failed_group_is_of_the_next_run() -> None:
    """All ranks of this run are known."""
    job = started(worker(6), worker(3))
    job.fail(WorkerLostError("gone"), 1.0)
    refused = job.join(worker(5), "peer:5", 2.0)[1]
    assert isinstance(refused, TakenError)
    assert "in which rank 5 was another process, has failed and is still ending" in str(refused)
