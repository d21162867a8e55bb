"""The members of an elastic job, for operators."""

from collections.abc import Iterable
from typing import Final

from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.elastic_roster import ElasticRoster
from psum.aggregator.core.membership_log import EventKind, MembershipLog
from psum.v1 import aggregator_pb2 as pb

#: The most events that are listed, the latest ones.
_MAX_EVENTS: Final = 64

_CHANGES: Final = {
    EventKind.LOST: pb.MEMBERSHIP_CHANGE_LOST,
    EventKind.LEFT: pb.MEMBERSHIP_CHANGE_LEFT,
    EventKind.WAITS: pb.MEMBERSHIP_CHANGE_WAITS,
    EventKind.WITHDRAWN: pb.MEMBERSHIP_CHANGE_WITHDRAWN,
    EventKind.ADMITTED: pb.MEMBERSHIP_CHANGE_ADMITTED,
}

#: The events that change for which ranks rounds wait.
_CHANGING: Final = (EventKind.LOST, EventKind.LEFT, EventKind.ADMITTED)


def elastic_status(
    elastic: pb.Elastic, roster: ElasticRoster, log: MembershipLog, candidates: Iterable[Candidate], now: float
) -> pb.ElasticStatus:
    """The members of a job, with the latest events.

    Args:
        elastic: How many members the job may have.
        roster: Its ranks.
        log: What happened to them.
        candidates: The processes that wait to join.
        now: The time.
    """
    # That a process is connected, as all are in the beginning, is no change.
    events = [event for event in log if event.kind in _CHANGES]
    changed = max((event.at for event in log if event.kind in _CHANGING), default=None)
    return pb.ElasticStatus(
        min=elastic.min,
        max=elastic.max,
        members=len(roster.known),
        losses=log.counts[EventKind.LOST],
        joins=log.counts[EventKind.ADMITTED],
        departures=log.counts[EventKind.LEFT],
        events=[
            pb.MembershipEvent(
                change=_CHANGES[event.kind],
                rank=event.rank,
                generation=event.generation,
                text=event.text,
                seconds_ago=max(0.0, now - event.at),
            )
            for event in events[: -_MAX_EVENTS - 1 : -1]
        ],
        changed_seconds=0.0 if changed is None else max(0.0, now - changed),
        lost=sorted(roster.lost),
        candidates=[
            pb.CandidateStatus(
                rank=candidate.hello.rank,
                worker=candidate.hello.worker,
                peer=candidate.peer,
                waiting_seconds=now - candidate.since,
            )
            for candidate in candidates
        ],
    )
