"""Two aggregators behind one address are distinguished from one that replaces another."""

import pytest

from psum.client.transport.split_addresses import Member, is_another, pauses, split
from psum.v1 import aggregator_pb2 as pb

MEMBER = Member("night", 0, 3)


@pytest.mark.parametrize(
    ("status", "another"),
    [
        (pb.GetStatusResponse(incarnation=2, uptime_seconds=90), True),
        (pb.GetStatusResponse(incarnation=1, uptime_seconds=90), False),
        (pb.GetStatusResponse(incarnation=2, uptime_seconds=29), False),
        (pb.GetStatusResponse(incarnation=2, uptime_seconds=90, draining=True), False),
    ],
    ids=["beside it", "the same", "started since", "about to end"],
)
def test_a_rolling_restart_is_no_reason(status: pb.GetStatusResponse, another: bool) -> None:
    """A process that was started after this worker connected may be the next one; one that drains, the previous one."""
    assert is_another(status, 1, 30) is another


def job(name: str, *workers: pb.WorkerStatus) -> pb.GetStatusResponse:
    """A process's answer about a job."""
    return pb.GetStatusResponse(jobs=[pb.JobStatus(name=name, num_workers=3, workers=workers)])


def test_the_error_says_who_is_where_and_what_to_do() -> None:
    """Ranks that have vanished there count too: they may have found out first."""
    error = split(MEMBER, "psum:50051", job("night", pb.WorkerStatus(rank=2, connected=True), pb.WorkerStatus(rank=1)))
    assert error is not None
    assert error.ranks == (0, 1, 2)
    assert str(error).startswith(
        "address psum:50051 leads to more than one aggregator: rank 0 of job 'night' came to one, ranks 1-2 to another"
    )
    assert "Give every aggregator an address of its own" in str(error)


def test_the_error_names_all_ranks_of_a_relay() -> None:
    """They are all where the relay is."""
    error = split(MEMBER, "psum:50051", job("night", pb.WorkerStatus(rank=1, ranks=[1, 2], connected=True)))
    assert error is not None
    assert error.ranks == (0, 1, 2)
    assert "ranks 1-2 to another" in str(error)


@pytest.mark.parametrize(
    "status",
    [
        job("night"),
        job("other", pb.WorkerStatus(rank=1)),
        job("night", pb.WorkerStatus(rank=1, left=True)),
        # This worker's own earlier connection.
        job("night", pb.WorkerStatus(rank=0)),
    ],
)
def test_without_other_ranks_there_is_no_harm(status: pb.GetStatusResponse) -> None:
    """As when the other process serves other jobs."""
    assert split(MEMBER, "psum:50051", status) is None


def test_questions_come_soon_and_then_seldom() -> None:
    """The first comes after two seconds. Within a round's time-out there are few enough for thousands of workers."""
    at, times = 0.0, []
    for pause in pauses():
        at += pause
        if at > 600:
            break
        times.append(at)
    assert 2 <= times[0] <= 2.5
    assert len(times) < 30
