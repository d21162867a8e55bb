"""Ranks agree on what a key is, and all hear of a key that fails."""

import pytest

from psum.aggregator.core.actions import Report
from psum.aggregator.core.job import Job
from psum.aggregator.core.job_status import job_status
from psum.aggregator.core.limits import Limits
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import AbortedError, DisagreementError, ProtocolError
from tests.aggregator.core.two_workers import checked_job, declare, hello
from tests.aggregator.keys import FOUR, entry, key

job = pytest.fixture(checked_job)


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
    [first] = job.declare(1, key(elements=9), now=0.0)
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
