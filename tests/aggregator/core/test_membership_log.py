"""What operators are told of the members of an elastic job."""

import pytest

from psum.aggregator.core.membership_log import EventKind
from tests.aggregator.core.elastic import silence
from tests.aggregator.core.joining import admission, admit, begun, candidate, waits


def test_the_log_has_what_happened_to_members() -> None:
    """In order, with generations, times and reasons."""
    job = begun()
    silence(job, 1)
    waits(job, candidate(1, 20.0))
    admit(job, 0, admission(1, 1), 21.0)
    admit(job, 2, admission(1, 1), 22.0)
    gone = candidate(3, 23.0)
    waits(job, gone)
    job.withdraw(gone, 24.0)
    job.leave(2, 25.0)
    job.leave(2, 26.0)
    events = [(event.at, event.kind, event.rank, event.generation) for event in job.log]
    assert events == [
        *((0.0, EventKind.JOINED, rank, 0) for rank in range(3)),
        (pytest.approx(15.1), EventKind.LOST, 1, 0),
        (20.0, EventKind.WAITS, 1, 1),
        (21.0, EventKind.ADMITTED, 1, 1),
        (22.0, EventKind.JOINED, 1, 1),
        (23.0, EventKind.WAITS, 3, 0),
        (24.0, EventKind.WITHDRAWN, 3, 0),
        (25.0, EventKind.LEFT, 2, 0),
    ]
    assert job.log.counts[EventKind.JOINED] == 4
    assert "h1 pid 7 (peer 1) vanished 5.1 s ago" in next(e.text for e in job.log if e.kind is EventKind.LOST)


def test_the_log_is_bounded() -> None:
    """It keeps the latest events, and counts all."""
    job = begun()
    for number in range(400):
        process = candidate(3, float(number))
        waits(job, process)
        job.withdraw(process, float(number))
    assert len(job.log) == 256
    assert job.log.counts[EventKind.WAITS] == 400
    assert list(job.log)[-1].at == 399.0
