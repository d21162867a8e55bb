"""Processes that ask to join an elastic job which has no member on this aggregator.

The job may have members that come later: the aggregator was just started again. Or it never existed, or has ended.
"""

from collections.abc import Iterator
from typing import Final

from psum.aggregator.core import elastic_texts
from psum.aggregator.core.actions import Refuse
from psum.aggregator.core.candidates import Candidate, Candidates
from psum.wire.errors import ExhaustedError, FaultError

#: For how many jobs processes may wait.
_MAX_JOBS: Final = 1000


class WaitingRoom:
    """The processes that wait for the first member of their job.

    Args:
        timeout: How long one may wait, in seconds.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._jobs: dict[str, Candidates] = {}
        self._deserted: set[str] = set()
        """Those of the jobs whose members here are all gone, so that nobody need be waited for."""
        self._refused: list[Refuse] = []

    def add(self, candidate: Candidate, *, deserted: bool = False) -> FaultError | None:
        """Lets a process wait. Returns why it is refused; None if it waits.

        Args:
            candidate: The process.
            deserted: Whether it has waited for members that were here, and are all gone.
        """
        name, hello = candidate.hello.job, candidate.hello
        if name not in self._jobs and len(self._jobs) >= _MAX_JOBS:
            return ExhaustedError(
                f"job {name!r} was refused: processes wait for {_MAX_JOBS} other jobs here already; start this one"
                " later, or on other aggregators"
            )
        candidates = self._jobs.setdefault(name, Candidates())
        waiting = candidates.of(hello.rank)
        if waiting is not None and waiting.hello.incarnation != hello.incarnation:
            return elastic_texts.taken_candidate(name, waiting, hello, candidate.peer)
        if (replaced := candidates.add(candidate)) is not None:
            self.refuse(replaced, elastic_texts.replaced_candidate(name, hello, candidate.peer))
        if deserted:
            self._deserted.add(name)
        return None

    def remove(self, candidate: Candidate) -> None:
        """Notes that the stream of a process has ended, if it waits here."""
        candidates = self._jobs.get(candidate.hello.job)
        if candidates is not None and candidates.remove(candidate) and not candidates:
            self.take(candidate.hello.job)

    def take(self, name: str) -> list[Candidate]:
        """Takes out all that wait for a job, which begins. The one that has waited longest comes first."""
        self._deserted.discard(name)
        return sorted(self._jobs.pop(name, ()), key=lambda candidate: candidate.since)

    def waited(self, seconds: float, now: float) -> list[str]:
        """The jobs for which some process has waited for longer than this, or for which nobody need wait."""
        return [
            name
            for name, each in self._jobs.items()
            if name in self._deserted or any(now - candidate.since > seconds for candidate in each)
        ]

    def refuse(self, candidate: Candidate, fault: FaultError) -> None:
        """Has a process refused with the next `refusals`."""
        self._refused.append(Refuse(candidate, fault))

    def refusals(self, now: float) -> Iterator[Refuse]:
        """Those that are refused by now."""
        refused, self._refused = self._refused, []
        yield from refused
        overdue = [c for each in self._jobs.values() for c in each if now - c.since > self._timeout]
        for candidate in overdue:
            self.remove(candidate)
            text = elastic_texts.NO_MEMBERS
            yield Refuse(candidate, elastic_texts.waited_in_vain(candidate.hello.job, candidate, text, self._timeout))
