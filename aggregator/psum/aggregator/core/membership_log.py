"""What happened to the members of an elastic job, for operators: who was lost, who waits, who joined, and why."""

import dataclasses
import enum
from collections import deque
from collections.abc import Iterator
from typing import Final

#: How many events of one job are kept.
_KEPT: Final = 256

#: The longest text of an event, in characters.
_MAX_TEXT: Final = 1024


class EventKind(enum.Enum):
    """What happened to a process."""

    JOINED = "joined"
    LOST = "lost"
    LEFT = "left"
    WAITS = "waits to join"
    WITHDRAWN = "waits no more"
    ADMITTED = "admitted"


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        at: When, by the clock that the job is given.
        kind: What.
        rank: The rank.
        generation: Which process of the rank: how many were members before it.
        text: Which process, and why, for people.
    """

    at: float
    kind: EventKind
    rank: int
    generation: int
    text: str


class MembershipLog:
    """The last events of one job, the oldest first, and how many there were of each kind."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=_KEPT)
        self.counts = dict.fromkeys(EventKind, 0)
        """How many events there were of each kind, those included that are not kept any more."""

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)

    def note(self, at: float, kind: EventKind, rank: int, generation: int, text: str) -> None:
        """Adds an event, and forgets the oldest one if there are too many."""
        self._events.append(Event(at, kind, rank, generation, text[:_MAX_TEXT]))
        self.counts[kind] += 1
