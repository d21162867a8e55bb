"""Keys of an elastic job that only some of its ranks use."""

from collections.abc import Sequence
from typing import Any

import pytest

from psum.aggregator.core.actions import Action, Deliver, Report, Sum
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.job import Job
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import DisagreementError, FaultError, ProtocolError, RoundTimeoutError, WorkerLostError
from tests.aggregator.core.elastic import LIMITS, hello, loss, started, tick
from tests.aggregator.keys import declare


def declare_among(
    job: Job, rank: int, ranks: Sequence[int], round: int = 0, *, broadcast: bool = False, id: int = 9
) -> list[Action]:
    return declare(job, rank, round, broadcast=broadcast, ranks=ranks, id=id)


def contribute(job: Job, rank: int, value: bytes | None, round: int = 0, id: int = 9) -> list[Action]:
    entry = ShardRound(id=id, round=round, length=len(value or b""))
    actions = job.contribute(rank, entry, None if value is None else memoryview(value), 1.0)
    job.check()
    return actions


def complete(job: Job, actions: Sequence[Action]) -> Deliver:
    """Makes the sum that the actions ask for."""
    [action] = [action for action in actions if isinstance(action, Sum)]
    [deliver] = job.summed(action.key, action.shard, bytes(map(sum, zip(*action.contributions, strict=True))))
    job.check()
    assert isinstance(deliver, Deliver)
    return deliver


def fault(actions: Sequence[Action]) -> tuple[FaultError, tuple[int, ...]]:
    [(fault, ranks)] = [
        (action.fault, action.ranks)
        for action in actions
        if isinstance(action, Report) and action.fault.key is not None
    ]
    return fault, ranks


def transfer(**change: Any) -> ElasticJob:
    """A job of three in which rank 1 has declared a broadcast to rank 2."""
    job = started(**change)
    for rank in (1, 2):
        assert declare_among(job, rank, (1, 2), broadcast=True) == []
    return job


def test_a_broadcast_goes_from_the_first_of_its_ranks_to_the_others() -> None:
    """Rank 0 neither contributes nor gets anything, and is not waited for."""
    job = transfer()
    assert contribute(job, 2, None) == []
    result = complete(job, contribute(job, 1, b"abcd"))
    assert (result.result, result.ranks, result.contributors) == (b"abcd", (1, 2), 0)
    assert contribute(job, 1, b"efgh", 1) == []
    assert complete(job, contribute(job, 2, None, 1)).result == b"efgh"


def test_the_root_may_be_a_higher_rank_than_the_others() -> None:
    """A newcomer takes the place of a low rank, and gets the state from a higher one."""
    job = started()
    for rank in (2, 0):
        declare_among(job, rank, (2, 0), broadcast=True)
    contribute(job, 0, None)
    result = complete(job, contribute(job, 2, b"abcd"))
    assert (result.result, result.ranks) == (b"abcd", (0, 2))


def test_a_sum_is_over_its_ranks() -> None:
    """It counts only them, so that no rank seems to be missing."""
    job = started()
    declare_among(job, 0, (0, 2))
    declare_among(job, 2, (0, 2))
    contribute(job, 0, b"\x01\x01\x01\x01")
    result = complete(job, contribute(job, 2, b"\x02\x02\x02\x02"))
    assert (result.result, result.ranks, result.contributors) == (b"\x03\x03\x03\x03", (0, 2), 0)


def test_a_round_does_not_wait_for_a_lost_receiver() -> None:
    """The root goes on alone, also in later rounds."""
    job = transfer()
    contribute(job, 1, b"abcd")
    assert complete(job, job.learn_losses(0, [loss(2)], 3.0)).ranks == (1,)
    assert complete(job, contribute(job, 1, b"efgh", 1)).ranks == (1,)


def test_no_least_number_of_ranks_is_needed() -> None:
    """A job with too few ranks must be able to take another one in."""
    job = transfer(elastic=pb.Elastic(min=3, max=3))
    job.learn_losses(1, [loss(0)], 3.0)
    contribute(job, 1, b"abcd")
    assert complete(job, contribute(job, 2, None)).ranks == (1, 2)


def test_the_key_fails_if_its_root_is_lost() -> None:
    """Only its ranks are told, and the job goes on: another rank begins the transfer again, with another key."""
    job = transfer()
    contribute(job, 2, None)
    job.lost(1, 2.0)
    error, ranks = fault(job.learn_losses(0, [loss(1)], 3.0))
    assert isinstance(error, WorkerLostError)
    assert ranks == (2,)
    assert error.ranks == (1,)
    assert "rank 1 of elastic job 'night', whose value key 'w' round 0 sends to ranks 1-2, is lost" in str(error)
    assert job.failure is None
    declare_among(job, 0, (0, 2), broadcast=True, id=10)
    declare_among(job, 2, (0, 2), broadcast=True, id=10)
    contribute(job, 2, None, id=10)
    assert complete(job, contribute(job, 0, b"abcd", id=10)).result == b"abcd"


def test_the_key_fails_if_its_root_is_lost_before_anybody_waits() -> None:
    """Whoever asks for the value later hears it at once."""
    job = transfer()
    job.learn_losses(0, [loss(1)], 3.0)
    error, _ = fault(contribute(job, 2, None))
    assert isinstance(error, WorkerLostError)


def test_ranks_disagree_on_who_uses_a_key() -> None:
    """The error shows both sides."""
    job = started()
    declare_among(job, 1, (1, 2))
    error, _ = fault(declare_among(job, 2, (0, 2)))
    assert isinstance(error, DisagreementError)
    assert "among ranks 1-2, rank 2 declared pushpull of uint8 (4,) among ranks 0, 2" in str(error)


@pytest.mark.parametrize("ranks", [(0, 1), (1, 2, 1), (1, 1), (1, 3)])
def test_a_declaration_with_wrong_ranks_ends_the_stream(ranks: tuple[int, ...]) -> None:
    """Each rank once, below the job's maximum; the sender among them."""
    job = started()
    with pytest.raises(ProtocolError, match="expected each rank once"):
        declare_among(job, 1 if ranks != (0, 1) else 2, ranks)
    job.check()


def test_only_its_ranks_contribute_to_a_key() -> None:
    """A contribution of another rank breaks the protocol."""
    job = transfer()
    with pytest.raises(ProtocolError, match="which only ranks 1-2 use"):
        contribute(job, 0, None)
    job.check()


def test_only_elastic_jobs_have_such_keys() -> None:
    """In another job each rank uses each key."""
    plain = hello(0)
    plain.ClearField("elastic")
    job = Job(plain, LIMITS)
    job.join(plain, "peer", 0.0)
    with pytest.raises(ProtocolError, match="only an elastic job has keys"):
        declare_among(job, 0, (0, 1))


def test_a_round_that_waits_too_long_fails_like_others() -> None:
    """Too few ranks of the job are no reason for it to wait."""
    job = transfer(elastic=pb.Elastic(min=3, max=3))
    contribute(job, 2, None)
    job.learn_losses(1, [loss(0)], 3.0)
    error, ranks = fault(tick(job, 602.0))
    assert isinstance(error, RoundTimeoutError)
    assert (error.ranks, ranks) == ((1,), (1, 2))


def test_keys_at_rest_are_forgotten() -> None:
    """Their memory is free, and their names may be used again from the first round on. Other keys stay."""
    job = transfer()
    for rank in range(3):
        declare(job, rank)
    before = job._memory.budget.reserved_bytes
    contribute(job, 2, None)
    complete(job, contribute(job, 1, b"abcd"))
    job.rounds.forget_ranked_keys()
    job.check()
    assert list(job.keys) == [7]
    assert job._memory.budget.reserved_bytes == before - 4 * 3
    assert job.held_bytes == 0
    assert job.rounds.shards == 1
    declare_among(job, 1, (1, 2), broadcast=True)
    assert contribute(job, 1, b"abcd") == []


def test_a_failed_key_is_forgotten() -> None:
    """Nothing of it is needed."""
    job = transfer()
    contribute(job, 2, None)
    job.learn_losses(0, [loss(1)], 3.0)
    job.rounds.forget_ranked_keys()
    job.check()
    assert not job.keys


def test_a_key_whose_round_is_open_is_not_forgotten() -> None:
    """It is when the round is complete."""
    job = transfer()
    contribute(job, 2, None)
    job.rounds.forget_ranked_keys()
    made = contribute(job, 1, b"abcd")
    job.rounds.forget_ranked_keys()
    assert complete(job, made).result == b"abcd"
    job.rounds.forget_ranked_keys()
    assert not job.keys


def test_a_restarted_aggregator_gets_the_last_value_from_the_root() -> None:
    """A transfer goes on where it was."""
    job = started(range(3), resuming=True)
    declare_among(job, 2, (1, 2), 4, broadcast=True)
    assert contribute(job, 2, None, 4) == []
    declare_among(job, 1, (1, 2), 5, broadcast=True)
    [action] = job.restore(1, ShardRound(id=9, round=4, length=4), memoryview(b"last"))
    assert isinstance(action, Sum)
    [result] = job.restored(action.key, 0, 4, b"last")
    assert isinstance(result, Deliver)
    assert result.ranks == (2,)
