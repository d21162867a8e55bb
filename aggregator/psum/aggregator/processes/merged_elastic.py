"""The members of an elastic job as several processes of one aggregator know them, as one.

Each process decides on losses itself, and hears of those that others have decided. So the same change is known to all
of them, at slightly different times.
"""

from collections.abc import Sequence

from psum.v1 import aggregator_pb2 as pb

_Change = tuple[pb.MembershipChange.ValueType, int, int]
"""What has happened, the rank, and its generation: this happens once."""


def merged_elastic(found: Sequence[pb.ElasticStatus]) -> pb.ElasticStatus:
    """The members of a job, given what its processes know, of which there is at least one."""
    merged = pb.ElasticStatus()
    merged.CopyFrom(found[0])
    for name in ("events", "candidates", "lost"):
        merged.ClearField(name)
    merged.members = min(each.members for each in found)
    # A process that was started again does not know what was before.
    merged.losses = max(each.losses for each in found)
    merged.joins = max(each.joins for each in found)
    merged.departures = max(each.departures for each in found)
    merged.changed_seconds = min((each.changed_seconds for each in found if each.changed_seconds), default=0.0)
    merged.lost.extend(sorted({rank for each in found for rank in each.lost}))
    events: dict[_Change, pb.MembershipEvent] = {}
    for event in (event for each in found for event in each.events):
        # The process that has decided a loss has told the others why, so the first one's text is as good as any.
        events.setdefault((event.change, event.rank, event.generation), event)
    longest = max(len(each.events) for each in found)
    merged.events.extend(sorted(events.values(), key=lambda event: event.seconds_ago)[:longest])
    candidates: dict[int, list[pb.CandidateStatus]] = {}
    for candidate in (candidate for each in found for candidate in each.candidates):
        candidates.setdefault(candidate.rank, []).append(candidate)
    for rank in sorted(candidates):
        merged.candidates.append(max(candidates[rank], key=lambda candidate: candidate.waiting_seconds))
    return merged
