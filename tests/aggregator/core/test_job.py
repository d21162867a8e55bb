"""A job turns what its workers do into sums, deliveries, credit and faults."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from psum.aggregator.core.actions import Action, Deliver, Release, Report, ReturnCredit, Sum, Warn
from psum.aggregator.core.credit import CREDIT_HOLD_SECONDS, LENT_HOLD_SECONDS
from psum.aggregator.core.job import Job
from psum.aggregator.core.job_status import job_status
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.membership import REPLACED_SECONDS
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import (
    AbortedError,
    DisagreementError,
    ProtocolError,
    RoundTimeoutError,
    TakenError,
    WorkerLostError,
)


def hello(rank: int, change: Mapping[str, Any] | None = None) -> pb.Hello:
    fields: dict[str, Any] = {
        "job": "night",
        "rank": rank,
        "num_workers": 2,
        "partition_bytes": 1024,
        "aggregators": ["a:1"],
        "worker": f"host pid {100 + rank}",
    }
    return pb.Hello(**fields | dict(change or {}))


def key(
    elements: int = 4, *, operation: pb.Operation.ValueType = pb.OPERATION_SUM, id: int = 7, round: int = 0
) -> pb.Key:
    return pb.Key(
        id=id,
        name="w",
        elements=elements,
        type=pb.ELEMENT_TYPE_UINT8,
        operation=operation,
        shape=[elements],
        shards=[pb.Shard(index=0, elements=elements, round=round)],
    )


def entry(round: int = 0, *, id: int = 7, priority: int = 0, shard: int = 0, length: int = 4) -> ShardRound:
    return ShardRound(id=id, shard=shard, round=round, priority=priority, length=length)


FOUR = memoryview(b"abcd")


@pytest.fixture
def job() -> Iterator[Job]:
    """A job of two workers, both there, whose invariants are checked at the end."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    for rank in range(2):
        assert job.join(hello(rank), f"peer:{rank}", now=0.0) == ([], None)
    yield job
    job.check()


def run_round(job: Job, round: int) -> list[Action]:
    assert job.contribute(0, entry(round), FOUR, now=1.0) == []
    [action] = job.contribute(1, entry(round), FOUR, now=1.0)
    assert isinstance(action, Sum)
    return job.summed(action.key, action.shard, f"sum {round}")


def declare(job: Job, message: pb.Key | None = None) -> None:
    for rank in job.workers:
        assert job.declare(rank, message or key(), now=0.0) == []


def test_a_round_is_summed_in_rank_order_and_delivered_to_all(job: Job) -> None:
    """The sum gets the contributions in rank order, whichever comes first, and the highest priority."""
    declare(job)
    one, two = memoryview(b"1111"), memoryview(b"2222")
    assert job.contribute(1, entry(priority=-3), two, now=1.0) == []
    [action] = job.contribute(0, entry(priority=-5), one, now=1.0)
    assert isinstance(action, Sum)
    assert (action.contributions, action.priority) == ((one, two), -3)
    assert job.summed(action.key, 0, "sum") == [Deliver(action.key, 0, 0, -3, "sum", (0, 1))]
    job.check()


def test_rounds_follow_each_other_and_hold_one_result(job: Job) -> None:
    """The held bytes do not grow with the rounds."""
    declare(job)
    for round in range(5):
        run_round(job, round)
        assert job.held_bytes == 4
        job.check()
    assert job.rounds.completed == 5


def test_a_broadcast_delivers_the_roots_value_when_all_take_part(job: Job) -> None:
    """Rank 0 pushes, the others pull; the value is delivered when every rank has asked."""
    declare(job, key(operation=pb.OPERATION_BROADCAST))
    assert job.contribute(1, entry(length=0), None, now=1.0) == []
    [action] = job.contribute(0, entry(), FOUR, now=1.0)
    assert isinstance(action, Sum)
    assert action.contributions == (FOUR,)


@pytest.mark.parametrize(("rank", "payload"), [(0, None), (1, FOUR)], ids=["the root pulls", "another rank pushes"])
def test_the_wrong_part_in_a_broadcast_breaks_the_protocol(job: Job, rank: int, payload: memoryview | None) -> None:
    """Only rank 0 may push, and all others may only pull."""
    declare(job, key(operation=pb.OPERATION_BROADCAST))
    with pytest.raises(ProtocolError, match=f"rank {rank} contributed"):
        job.contribute(rank, entry(), payload, now=1.0)


def test_a_lost_result_is_delivered_again_to_whom_lacks_it(job: Job) -> None:
    """A contribution to the round before is answered with the kept result."""
    declare(job)
    run_round(job, 0)
    [action] = job.contribute(1, entry(0), FOUR, now=2.0)
    assert isinstance(action, Deliver)
    assert (action.result, action.ranks) == ("sum 0", (1,))


@pytest.mark.parametrize(
    ("change", "both_sides"),
    [
        ({"num_workers": 3}, r"PSUM_NUM_WORKERS\): rank 0 has 2, rank 1 has 3"),
        ({"partition_bytes": 2048}, r"PSUM_PARTITION_BYTES\): rank 0 has 1024, rank 1 has 2048"),
        ({"aggregators": ["a:1", "b:1"]}, r"PSUM_AGGREGATORS\): rank 0 has \['a:1'\], rank 1 has \['a:1', 'b:1'\]"),
        (
            {"aggregator_index": 1},
            "one and the same aggregator: rank 0 of job 'night' came by the first, rank 1",
        ),
    ],
)
def test_ranks_that_disagree_on_settings_all_hear_of_it(change: dict[str, object], both_sides: str) -> None:
    """While ranks are missing, a worker that disagrees is one of them: the job fails for all, showing both sides."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    job.join(hello(0), "peer:0", now=0.0)
    actions, refusal = job.join(hello(1, change), "peer:1", now=1.0)
    assert isinstance(refusal, DisagreementError)
    assert actions == [Report(refusal, (0,))]
    with pytest.raises(DisagreementError, match=both_sides):
        raise refusal
    assert job.join(hello(1), "peer:1", now=2.0) == ([], refusal)


def test_a_stranger_does_not_end_a_complete_job(job: Job) -> None:
    """Once all ranks have joined, a worker that disagrees is refused, and no rank is told."""
    actions, refusal = job.join(hello(0, {"num_workers": 5}), "peer:9", now=1.0)
    assert isinstance(refusal, DisagreementError)
    assert actions == []
    assert job.failure is None


def test_a_rank_is_taken_once(job: Job) -> None:
    """The second worker is refused with the name of the first; the first goes on."""
    actions, refusal = job.join(hello(1, {"worker": "other pid 9", "incarnation": 9}), "peer:9", now=2.0)
    assert isinstance(refusal, TakenError)
    assert actions == []
    assert "rank 1 of job 'night' is taken by host pid 101 (peer:1), connected 2.0 s ago" in str(refusal)
    assert "refused other pid 9 (peer:9)" in str(refusal)


def test_a_worker_that_vanished_before_it_took_part_may_be_replaced(job: Job) -> None:
    """A restarted process takes over its rank only if the first process has contributed to no round."""
    job.lost(1, now=1.0)
    assert job.join(hello(1, {"worker": "host pid 9", "incarnation": 9}), "peer:9", now=2.0) == ([], None)
    declare(job)
    job.contribute(1, entry(), FOUR, now=3.0)
    job.lost(1, now=4.0)
    late = hello(1, {"worker": "host pid 10", "incarnation": 10, "age_seconds": 60})
    actions, refusal = job.join(late, "peer:10", now=5.0)
    assert actions == []
    assert isinstance(refusal, TakenError)
    assert "taken by host pid 9 (peer:9), which vanished 1.0 s ago" in str(refusal)


@pytest.mark.parametrize(("closed", "contributed", "kept"), [(True, True, 5), (False, True, 30), (True, False, 30)])
def test_a_worker_whose_connection_was_closed_is_kept_a_place_for_less_long(
    closed: bool, contributed: bool, kept: float
) -> None:
    """One that is silent may be out of reach; for one that had taken part in nothing, another one may yet come."""
    job = Job(hello(0), Limits(worker_timeout=30, closed_timeout=5, round_timeout=600, warn_after=600))
    for rank in range(2):
        job.join(hello(rank), f"peer:{rank}", now=0.0)
    declare(job)
    if contributed:
        job.contribute(1, entry(), FOUR, now=1.0)
    job.lost(1, 2.0, closed=closed)
    assert job.tick(2.0 + kept) == []
    [report] = job.tick(2.1 + kept)
    assert isinstance(report, Report)
    assert f"within the worker timeout of {kept} s" in str(report.fault)


@pytest.mark.parametrize(
    ("age", "now"), [(0.5, 5.0), (60.0, 4.0 + REPLACED_SECONDS)], ids=["started since", "nobody has come back"]
)
def test_a_worker_that_vanished_is_not_waited_for_where_another_process_has_its_rank(
    job: Job, age: float, now: float
) -> None:
    """Its peers hear of it at once, and the new process of the next run, which begins when they have gone."""
    declare(job)
    job.contribute(1, entry(), FOUR, now=3.0)
    job.lost(1, now=4.0)
    late = hello(1, {"worker": "host pid 10", "incarnation": 10, "age_seconds": age})
    [report], refusal = job.join(late, "peer:10", now)
    assert isinstance(refusal, TakenError)
    assert isinstance(report, Report)
    assert isinstance(report.fault, WorkerLostError)
    assert (report.fault.ranks, report.ranks) == ((1,), (0,))
    assert "host pid 101 (peer:1), vanished" in str(report.fault)
    assert "another process, host pid 10 (peer:10), has come in its place" in str(report.fault)
    actions, refusal = job.join(late, "peer:10", now + 1)
    assert actions == []
    assert isinstance(refusal, TakenError)
    assert "has failed and is still ending; still connected: rank 0 (host pid 100" in str(refusal)
    # The one before, which a broken network kept away, is told what has become of the job.
    assert job.join(hello(1, {"resuming": True}), "peer:1", now + 1)[1] is report.fault
    job.lost(0, now + 2)
    assert job.over


def test_one_that_comes_back_does_not_end_the_job_of_the_process_that_has_its_rank(job: Job) -> None:
    """It is refused itself, and told that it was replaced."""
    job.lost(1, now=1.0)
    job.join(hello(1, {"incarnation": 9}), "peer:9", now=2.0)
    declare(job)
    job.contribute(1, entry(), FOUR, now=3.0)
    job.lost(1, now=4.0)
    actions, refusal = job.join(hello(1, {"incarnation": 1, "resuming": True}), "peer:1", now=60.0)
    assert actions == []
    assert isinstance(refusal, TakenError)
    assert "It was replaced while it could not be reached" in str(refusal)


@pytest.mark.parametrize(
    "other",
    [
        pb.Key(id=7, name="w", elements=4, type=pb.ELEMENT_TYPE_INT8, operation=pb.OPERATION_SUM, shape=[4]),
        pb.Key(id=7, name="w", elements=4, type=pb.ELEMENT_TYPE_UINT8, operation=pb.OPERATION_SUM, shape=[2, 2]),
        pb.Key(id=7, name="w", elements=0, type=pb.ELEMENT_TYPE_UINT8, operation=pb.OPERATION_SUM, shape=[0]),
        pb.Key(id=7, name="v", elements=4, type=pb.ELEMENT_TYPE_UINT8, operation=pb.OPERATION_SUM, shape=[4]),
        pb.Key(id=7, name="w", elements=4, type=pb.ElementType.ValueType(69), operation=pb.OPERATION_SUM, shape=[4]),
    ],
    ids=["type", "shape", "size", "name", "unknown type"],
)
def test_ranks_that_disagree_on_a_key_all_hear_of_it(job: Job, other: pb.Key) -> None:
    """The key fails on every rank, the error shows both sides, and its memory is released; other keys go on."""
    if other.elements:
        other.shards.append(pb.Shard(index=0, elements=4))
    job.declare(0, key(), now=0.0)
    job.contribute(0, entry(), FOUR, now=0.0)
    [action] = job.declare(1, other, now=1.0)
    assert isinstance(action, Report)
    assert isinstance(action.fault, DisagreementError)
    assert action.ranks == (0, 1)
    assert "rank 0 declared pushpull of uint8 (4,), rank 1 declared pushpull of" in str(action.fault)
    assert job.held_bytes == 0
    assert job.contribute(0, entry(), FOUR, now=2.0) == []
    declare(job, key(id=8))


def labelled(label: str) -> pb.Key:
    declared = key()
    declared.label = label
    return declared


@pytest.mark.parametrize("labels", [("a", "b"), ("", "a", "b"), ("a", "", "b")])
def test_ranks_that_use_a_key_for_different_things_hear_of_it(labels: tuple[str, ...]) -> None:
    """Even if the shapes agree. The error shows both labels. A rank without a label agrees with any."""
    job = Job(hello(0, {"num_workers": 3}), Limits(worker_timeout=30, round_timeout=600))
    for rank in range(3):
        job.join(hello(rank, {"num_workers": 3}), f"peer:{rank}", now=0.0)
    *actions, last = (job.declare(rank, labelled(label), now=0.0) for rank, label in enumerate(labels))
    assert not any(actions)
    [action] = last
    assert isinstance(action, Report)
    assert isinstance(action.fault, DisagreementError)
    assert action.ranks == (0, 1, 2)
    sides = [f"rank {rank} declared pushpull of uint8 (4,) for {label}" for rank, label in enumerate(labels) if label]
    assert str(action.fault).startswith(f"ranks disagree on key 'w': {', '.join(sides)}; ")
    assert action.fault.ranks == tuple(rank for rank, label in enumerate(labels) if label)
    job.check()


def test_what_a_key_stands_for_is_shown_with_it(job: Job) -> None:
    """In the status, in warnings and in errors, even if only a later rank has given the label."""
    job.declare(0, key(), now=0.0)
    job.declare(1, labelled("dense0_weight"), now=0.0)
    job.contribute(0, entry(), FOUR, now=1.0)
    [waiting] = job_status(job, 2.0).rounds
    assert (waiting.key, waiting.label) == ("w", "dense0_weight")
    [report] = [action for action in job.tick(now=700.0) if isinstance(action, Report)]
    assert "key 'w' (dense0_weight) round 0 has waited" in str(report.fault)


def test_a_label_is_as_long_as_a_name_at_most(job: Job) -> None:
    """A first long label ends its sender's stream, and later ones are cut: the kept text is bounded."""
    with pytest.raises(ProtocolError, match="a name or label of 5000 characters"):
        job.declare(0, labelled("x" * 5000), now=0.0)
    job.declare(0, key(), now=0.0)
    assert job.declare(1, labelled("x" * 5000), now=0.0) == []
    assert job.keys[7].label == "x" * 4096


def test_a_rank_that_waits_itself_is_told_to_wait(job: Job) -> None:
    """Ranks that use keys in different orders wait for each other; the error of one names the other's key."""
    for id in (7, 8):
        for rank in range(2):
            job.declare(rank, key(id=id), now=0.0)
    job.contribute(0, entry(id=7), FOUR, now=1.0)
    job.contribute(1, entry(id=8), FOUR, now=1.0)
    first, second = (report for report in job.tick(now=700.0) if isinstance(report, Report))
    assert "it waits itself, for others in key 'w' round 0)" in str(first.fault)
    assert "it waits itself" not in str(second.fault)


def test_a_rank_that_uses_a_failed_key_later_hears_of_it(job: Job) -> None:
    """A rank that declares a failed key is told why it failed."""
    job.declare(0, key(), now=0.0)
    [first] = job.declare(1, key(9), now=0.0)
    assert isinstance(first, Report)
    assert job.declare(1, key(), now=1.0) == [Report(first.fault, (1,))]


def test_a_rank_that_cannot_contribute_fails_the_key_for_all(job: Job) -> None:
    """An abort names the rank and its reason."""
    declare(job)
    job.contribute(0, entry(), FOUR, now=0.0)
    [action] = job.abort(1, pb.Abort(id=7, round=0, text="out of memory"))
    assert isinstance(action, Report)
    assert isinstance(action.fault, AbortedError)
    assert (action.fault.ranks, action.fault.round, action.ranks) == ((1,), 0, (0, 1))
    assert "rank 1 of job 'night' could not contribute to key 'w' round 0: out of memory" in str(action.fault)


def test_credit_is_returned_for_contributions_that_wait(job: Job) -> None:
    """A round that waits for another rank returns its contributor's credit soon, and only once."""
    declare(job)
    job.contribute(1, entry(), FOUR, now=1.0)
    assert job.credit.pending
    assert job.tick(1.0 + CREDIT_HOLD_SECONDS / 2) == []
    assert job.tick(1.0 + CREDIT_HOLD_SECONDS * 2) == [ReturnCredit(1, ((7, 0, 0),))]
    assert job.tick(2.0) == []
    assert not job.credit.pending


def lending(size: int) -> Job:
    """A job of ranks that all contribute from memory that they lend, to five keys."""
    job = Job(hello(0, {"num_workers": size}), Limits(), lent=lambda payload: isinstance(payload.obj, bytearray))
    for rank in range(size):
        assert job.join(hello(rank, {"num_workers": size}), "peer", 0.0) == ([], None)
    for id in range(5):
        declare(job, key(id=id))
    return job


def lend(job: Job, rank: int, id: int, now: float) -> None:
    job.contribute(rank, entry(id=id), memoryview(bytearray(4)), now)


def test_lent_memory_is_not_copied_while_a_rank_is_merely_late() -> None:
    """The late rank will contribute: it waits for nobody. The credit of what waits for too long is returned."""
    job = lending(3)
    for rank in range(2):
        lend(job, rank, 0, 1.0)
    held = job.keys[0].shards[0].contributions
    assert job.tick(1.0 + LENT_HOLD_SECONDS / 2) == []
    assert [type(held[rank].obj) for rank in range(2)] == [bytearray, bytearray]
    assert job.credit.pending
    assert job.tick(1.1 + LENT_HOLD_SECONDS) == [ReturnCredit(rank, ((0, 0, 0),)) for rank in range(2)]
    assert [type(held[rank].obj) for rank in range(2)] == [bytes, bytes]
    assert not job.credit.pending


def test_lent_memory_is_held_while_a_rank_has_not_joined() -> None:
    """That one cannot wait for anything."""
    job = Job(hello(0), Limits(), lent=lambda _: True)
    job.join(hello(0), "peer", 0.0)
    declare(job)
    job.contribute(0, entry(), FOUR, now=1.0)
    assert job.tick(1.0 + 2 * CREDIT_HOLD_SECONDS) == []


def test_ranks_that_wait_for_each_other_get_their_credit_soon() -> None:
    """They have pushed different keys first. They wait even if their credit is back already."""
    job = lending(2)
    lend(job, 0, 0, 1.0)
    assert job.tick(1.02) == []
    lend(job, 1, 1, 1.02)
    assert job.tick(1.04) == [ReturnCredit(0, ((0, 0, 0),)), ReturnCredit(1, ((1, 0, 0),))]
    lend(job, 1, 2, 1.05)
    assert job.tick(1.07) == [ReturnCredit(1, ((2, 0, 0),))]
    # Rank 0 does not wait any more, so it is merely late for what rank 1 pushes next.
    lend(job, 0, 1, 1.08)
    lend(job, 1, 0, 1.08)
    for id in range(2):
        job.summed(job.keys[id], 0, FOUR)
    lend(job, 1, 3, 1.1)
    assert job.tick(1.12) == []
    job.check()


def test_credit_of_completed_rounds_is_returned_by_their_results(job: Job) -> None:
    """Credit is not returned separately for a contribution whose result is being sent."""
    declare(job)
    run_round(job, 0)
    assert job.tick(5.0) == []


def test_a_round_that_waits_too_long_names_whom_it_waits_for(job: Job) -> None:
    """After round_timeout the key fails on every rank, naming key, round, rank and time."""
    declare(job)
    job.contribute(0, entry(), FOUR, now=1.0)
    assert not any(isinstance(a, Report) for a in job.tick(601.0))
    [action] = job.tick(602.0)
    assert isinstance(action, Report)
    assert isinstance(action.fault, RoundTimeoutError)
    assert "key 'w' round 0 has waited 601.0 s for rank 1 (host pid 101, last heard" in str(action.fault)


def test_a_rank_that_never_joined_is_said_to() -> None:
    """A timeout tells a slow rank from one that never joined."""
    lonely = Job(hello(0), Limits(worker_timeout=30, round_timeout=1))
    lonely.join(hello(0), "peer", now=0.0)
    lonely.declare(0, key(), now=0.0)
    lonely.contribute(0, entry(), FOUR, now=0.0)
    *_, action = lonely.tick(2.0)
    assert "rank 1 (never joined)" in str(action.fault if isinstance(action, Report) else "")


def test_a_worker_that_vanished_fails_the_job_after_its_timeout(job: Job) -> None:
    """Its peers are told which rank it was and when it was last heard; all memory is released."""
    declare(job)
    job.contribute(0, entry(), FOUR, now=1.0)
    job.lost(1, now=2.0)
    job.tick(31.0)
    assert job.failure is None
    [action] = job.tick(33.0)
    assert isinstance(action, Report)
    assert isinstance(action.fault, WorkerLostError)
    assert (action.fault.key, action.fault.ranks, action.ranks) == (None, (1,), (0,))
    assert "rank 1 of job 'night', host pid 101 (peer:1), vanished 31.0 s ago" in str(action.fault)
    assert job.held_bytes == 0
    assert not job.over
    job.lost(0, now=34.0)
    assert job.over


def test_what_still_needs_a_worker_that_left_fails_at_once(job: Job) -> None:
    """A rank that waits for one that said goodbye gets an error, now and on later contributions."""
    declare(job)
    declare(job, key(id=8))
    job.contribute(0, entry(), FOUR, now=1.0)
    action, *_ = job.leave(1, now=2.0)
    assert isinstance(action, Report)
    assert isinstance(action.fault, WorkerLostError)
    assert "rank 1 (host pid 101) has left job 'night' without contributing to key 'w' round 0" in str(action.fault)
    [action] = job.contribute(0, entry(id=8), FOUR, now=2.0)
    assert isinstance(action, Report)
    assert action.fault.key == 8


def test_a_worker_that_left_does_not_disturb_what_it_contributed_to(job: Job) -> None:
    """Its last contributions still count."""
    declare(job)
    job.contribute(1, entry(), FOUR, now=1.0)
    assert not any(isinstance(a, Report) for a in job.leave(1, now=2.0))
    [action] = job.contribute(0, entry(), FOUR, now=2.0)
    assert isinstance(action, Sum)
    job.summed(action.key, 0, "sum")
    assert not job.over
    job.leave(0, now=2.0)
    job.lost(0, 1.0)
    job.lost(1, 1.0)
    assert job.over


def goodbye(*, replaceable: bool = False) -> pb.Goodbye:
    fault = WorkerLostError("rank 1 was ended by SIGTERM", ranks=[1, 9]).to_message()
    return pb.Goodbye(fault=fault, replaceable=replaceable)


def test_a_worker_that_ends_before_its_work_is_done_fails_the_job_at_once(job: Job) -> None:
    """Its peers hear why, though they need nothing of it now; it is let go itself."""
    declare(job)
    job.contribute(1, entry(), FOUR, now=1.0)
    report, release = job.leave_early(1, goodbye(replaceable=True), now=2.0)
    assert isinstance(report, Report)
    assert isinstance(report.fault, WorkerLostError)
    assert (str(report.fault), report.fault.ranks, report.ranks) == ("rank 1 was ended by SIGTERM", (1,), (0,))
    assert release == Release(1)
    assert job.leave_early(1, goodbye(), now=2.0) == []
    job.lost(1, 2.0)
    assert not job.over
    job.lost(0, 2.0)
    assert job.over


def test_a_worker_that_ends_before_it_took_part_in_anything_can_be_replaced(job: Job) -> None:
    """The others are warned. If it has not taken part here only, it says so, and the job fails here too."""
    warning, release = job.leave_early(1, goodbye(replaceable=True), now=2.0)
    assert isinstance(warning, Warn)
    assert warning.ranks == (0,)
    assert "rank 1 was ended by SIGTERM" in warning.text
    assert "is kept for another process, for 30 s" in warning.text
    assert release == Release(1)
    job.lost(1, 2.0)
    assert job.join(hello(1, {"incarnation": 7}), "peer:7", 3.0) == ([], None)
    report, _ = job.leave_early(1, goodbye(), now=4.0)
    assert isinstance(report, Report)
    job.lost(1, 4.0)


def test_a_sum_that_comes_after_the_job_failed_is_dropped(job: Job) -> None:
    """A sum that is finished after the job ended is dropped."""
    declare(job)
    job.contribute(0, entry(), FOUR, now=1.0)
    [action] = job.contribute(1, entry(), FOUR, now=1.0)
    assert isinstance(action, Sum)
    job.fail(WorkerLostError("gone"), now=1.0)
    assert job.summed(action.key, 0, "sum") == []


@pytest.mark.parametrize(
    ("wrong", "payload", "complaint"),
    [
        (entry(id=99), FOUR, "key id 0x63, which it has not declared"),
        (entry(shard=5), FOUR, "shard 5 of key 'w', which is none"),
        (entry(), memoryview(b"abc"), "3 bytes to shard 0 of key 'w'; expected 4"),
        (entry(), None, "nothing to shard 0"),
        (entry(round=1), FOUR, "round 1 of key 'w' shard 0, which is at round 0"),
    ],
)
def test_contributions_that_cannot_be_meant_break_the_protocol(
    job: Job, wrong: ShardRound, payload: memoryview | None, complaint: str
) -> None:
    """Unknown keys and shards, wrong sizes and wrong rounds end the sender's stream and change nothing."""
    declare(job)
    with pytest.raises(ProtocolError, match=complaint):
        job.contribute(0, wrong, payload, now=1.0)
    assert job.held_bytes == 0


@pytest.mark.parametrize(
    "wrong",
    [
        pb.Key(id=1, name="w", elements=1, type=pb.ElementType.ValueType(77), operation=pb.OPERATION_SUM),
        pb.Key(id=1, name="w", elements=1, type=pb.ELEMENT_TYPE_INT8),
        pb.Key(id=1, name="w", elements=1, type=pb.ELEMENT_TYPE_INT8, operation=pb.OPERATION_SUM, shards=[pb.Shard()]),
        pb.Key(
            id=1,
            name="w",
            elements=1 << 40,
            type=pb.ELEMENT_TYPE_INT8,
            operation=pb.OPERATION_SUM,
            shards=[pb.Shard(elements=1 << 40)],
        ),
    ],
    ids=["type", "operation", "empty shard", "huge shard"],
)
def test_declarations_that_contradict_themselves_break_the_protocol(job: Job, wrong: pb.Key) -> None:
    """A key must be of a known type and operation, its shards neither empty nor larger than a message."""
    with pytest.raises(ProtocolError, match="key 'w'"):
        job.declare(0, wrong, now=0.0)
    assert 1 not in job.keys


def test_the_status_says_whom_a_round_waits_for(job: Job) -> None:
    """The status lists workers, and the rounds in progress with their missing ranks."""
    declare(job)
    job.contribute(1, entry(), FOUR, now=1.0)
    status = job_status(job, now=4.0)
    assert [(w.rank, w.connected, w.peer) for w in status.workers] == [(0, True, "peer:0"), (1, True, "peer:1")]
    [round] = status.rounds
    assert (round.key, round.round, round.waiting_seconds, list(round.waiting_for)) == ("w", 0, 3.0, [0])
    assert (status.rounds_waiting, status.held_bytes, status.keys) == (1, 4, 1)


def test_a_declaration_of_an_unknown_type_that_differs_is_a_disagreement(job: Job) -> None:
    """protobuf accepts unknown values of an enumeration. Another test refuses the first declaration of such a key."""
    job.declare(0, key(), now=0.0)
    strange = key()
    # What a worker of another version might send: field 4, the type, is 99.
    strange.ClearField("type")
    [action] = job.declare(1, pb.Key.FromString(strange.SerializeToString() + b"\x20\x63"), now=0.0)
    assert isinstance(action, Report)
    assert isinstance(action.fault, DisagreementError)
    assert "rank 1 declared pushpull of unknown type 99 (4,)" in str(action.fault)


def test_what_a_worker_writes_into_names_and_reasons_is_limited(job: Job) -> None:
    """Names are kept, and reasons are logged and sent to all ranks, so megabytes of either are refused or cut."""
    endless = key()
    endless.name = "w" * 5000
    with pytest.raises(ProtocolError, match="5000 characters"):
        job.declare(0, endless, now=0.0)
    flat = key()
    flat.shape.extend([1] * 300)
    with pytest.raises(ProtocolError, match="301 dimensions"):
        job.declare(0, flat, now=0.0)
    declare(job)
    endless.name = "x" * 10**6
    endless.shape.extend([1] * 10**6)
    [action] = job.declare(1, endless, now=0.0)
    assert isinstance(action, Report)
    assert len(str(action.fault)) < 10_000
    job.declare(0, key(id=8), now=0.0)
    [action] = job.abort(0, pb.Abort(id=8, text="x" * 10**6))
    assert isinstance(action, Report)
    assert len(str(action.fault)) < 5000
