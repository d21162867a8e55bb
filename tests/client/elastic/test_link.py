"""What a step boundary has of its client, where no network is needed."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from psum.client.core.roll_call import Process, Row, read
from psum.client.core.session import Session
from psum.client.elastic.link import Link
from psum.v1 import aggregator_pb2 as pb

SETTINGS = psum.Settings(aggregators=("one:1",), rank=1, num_workers=2, elastic=psum.Elastic(1, 3))


@pytest.fixture
def started() -> list[Any]:
    """The tickets that were started."""
    return []


@pytest.fixture
def session(started: list[Any]) -> Session:
    """The session of rank 1, with one aggregator."""
    return Session(
        SETTINGS.aggregators,
        (),
        rank=1,
        elastic=True,
        num_workers=2,
        partition_bytes=16,
        credit_bytes=1,
        hand_over=started.append,
    )


class Owner:
    """A client that does nothing."""

    title = "rank 1 of job 'default'"
    waits_for_admission = False


def test_a_program_without_boundaries_is_warned_once_that_a_process_waits(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing else happens. A program with boundaries is not warned, nor one for which nobody waits for so long."""
    owner: Any = Owner()
    thread: Any = None
    link = Link(owner, SETTINGS, session, thread, lambda: None)

    def report(*candidates: pb.Candidate) -> None:
        session.handle(
            0, pb.ExchangeResponse(candidates=pb.Candidates(candidates=candidates)), memoryview(b""), (), 0.0
        )

    candidate = pb.Candidate(rank=2, incarnation=7, worker="host pid 7")
    link.look_for_candidates(0.0)
    report(candidate)
    link.look_for_candidates(1.0)
    report()
    link.look_for_candidates(30.0)
    report(candidate)
    link.look_for_candidates(31.0)
    link.look_for_candidates(50.0)
    assert caplog.records == []
    link.look_for_candidates(52.0)
    link.look_for_candidates(53.0)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(
        "rank 2 (host pid 7) waits to join the job, which rank 1 of job 'default' can"
    )
    assert "has not called ElasticState.step() so far" in record.getMessage()
    link = Link(owner, SETTINGS, session, thread, lambda: None)
    link.boundaries = 1
    link.look_for_candidates(60.0)
    link.look_for_candidates(90.0)
    assert len(caplog.records) == 1


def test_a_process_joins_although_it_was_let_in_before_it_made_its_state(session: Session) -> None:
    """A slow constructor, such as that of a model, may end after the admission. The process still needs the state."""
    owner: Any = Owner()
    thread: Any = None
    link = Link(owner, SETTINGS, session, thread, lambda: None)
    assert not link.joining
    session.joins.wait()
    assert link.joining
    session.joins.adopt([])
    assert not link.joining


def test_a_client_has_one_elastic_state(session: Session) -> None:
    """A boundary is that of the whole program."""
    owner: Any = Owner()
    thread: Any = None
    link = Link(owner, SETTINGS, session, thread, lambda: None)
    link.claim()
    with pytest.raises(RuntimeError, match="this client has an ElasticState already"):
        link.claim()


class Starter(Owner):
    """A client that starts operations, and has no aggregators."""

    incarnation = 7

    def __init__(self, session: Session) -> None:
        self.reserve, self.reserve_again = session.reserve, session.reserve_again
        self.upcoming: list[Callable[[], None]] = []

    def start_with_next(self, start: Callable[[], None]) -> None:
        self.upcoming.append(start)

    def start_upcoming(self) -> None:
        while self.upcoming:
            self.upcoming.pop()()


def test_each_roll_call_says_what_is_so_then(session: Session, started: list[Any]) -> None:
    """Nearly always that is the same as in the step before. What is not, is said once."""
    owner: Any = Starter(session)
    thread: Any = None
    link = Link(owner, SETTINGS, session, thread, lambda: None)
    newcomer = Process(2, 9)

    def say(*, leaving: bool = False, ahead: bool = True) -> Row:
        call = link.call(leaving=leaving, ahead=ahead)
        [start] = owner.upcoming or [None]
        assert (start is not None) is ahead
        owner.start_upcoming()
        [ticket] = started
        started.clear()
        said = ticket.source.copy()
        assert not call.done
        # Others say the same.
        ticket.target[...] = said + np.roll(said, 1, axis=0)
        ticket.done(None)
        assert call.done
        rows = read(call.result()).rows
        assert rows[1] == rows[2]
        # What this rank contributes must stay as it is.
        assert (ticket.source == said).all()
        return rows[1]

    assert [say(), say(), say(ahead=False)] == [Row(7)] * 3
    assert say(leaving=True) == Row(7, leaving=True)
    assert say() == Row(7)
    session.joins.admissions.note(0, [pb.Candidate(rank=2, incarnation=9)])
    assert [say(), say()] == [Row(7, candidate=newcomer)] * 2
    session.joins.admissions.note(0, [])
    assert say() == Row(7)
    assert started == []
