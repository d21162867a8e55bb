"""The processes of an elastic job on this machine: the job goes on when a worker fails, and another takes its place."""

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from typing import Final

from psum.cli.launch.fleet import CAUSE_SECONDS, LocalFleet
from psum.cli.launch.processes import describe, shell_status
from psum.cli.launch.verdict import Ending, cause, suspects
from psum.cli.launch.workforce import State, Workforce
from psum.client import ConnectError, Settings, fetch_status

#: How often the aggregator is asked whether a new process has joined.
_ASK_SECONDS: Final = 1.0

#: How long what a failed worker has started may take to end before another worker is started.
_CLEANING_SECONDS: Final = 2.0


@dataclasses.dataclass(frozen=True)
class _Membership:
    """What the aggregator knows.

    Attributes:
        members: The ranks whose present process has joined the job.
        lost: The ranks that were lost, and that no process has taken since.
    """

    members: set[int] = dataclasses.field(default_factory=set)
    lost: set[int] = dataclasses.field(default_factory=set)


class ElasticFleet(LocalFleet):
    """See LocalFleet. The job goes on while enough workers are left."""

    async def _watch(self, addresses: Sequence[str]) -> int:
        """Wait until the workers that are left have ended well, or too few are left, and return the exit status."""
        assert self._job.elastic is not None
        force = Workforce(self._job.workers, self._job.elastic.minimum, replace=self._job.replace, now=time.monotonic())
        failed: dict[int, Ending] = {}
        while not force.over:
            for rank in force.due(time.monotonic()):
                environ = {"PSUM_JOIN": "1"} if force.has_been_member(rank) else {}
                force.started(rank, time.monotonic())
                await self._start_worker(rank, addresses, environ)
            ended = await self._next(force)
            if ended is None:
                return self._aggregator_ended(next(c for c in self._aggregators if c.ended.done()), addresses)
            if ended:
                ended = await self._causes_first(force)
            known = (
                await self._membership(force, addresses[0]) if ended or force.ranks(State.JOINING) else _Membership()
            )
            # A process that has ended well had joined, though nobody has asked in time.
            well = {rank for rank in ended if self._ending(rank).code == 0}
            for rank in set(force.ranks(State.JOINING)) & (well | (known.members if known else set())):
                self._note_joined(force, rank, failed)
            for rank in known.lost if known else ():
                force.lost(rank)
            for rank in ended:
                if force.over:
                    break
                ending = self._ending(rank)
                if ending.code == 0:
                    force.finished(rank)
                    await self._join_check.check([rank], addresses[0])
                else:
                    # The latest failure comes last.
                    failed.pop(rank, None)
                    failed[rank] = ending
                    now = time.monotonic()
                    force.failed(rank, now, member=None if known is None else rank in known.members)
                    # Before what it has left is ended, which may take longer than the pause.
                    self._display.note(_told(force, ending, now))
                    await self._clean_up(rank)
        await self._await_late(force, failed)
        return self._status(force, list(failed.values()))

    def _environment(self, index: int) -> dict[str, str]:
        return super()._environment(index) | {"PSUM_ELASTIC": str(self._job.elastic), "PSUM_JOIN": "0"}

    async def _next(self, force: Workforce) -> list[int] | None:
        """Wait until workers have ended, a process is to be started, or it is time to ask for those who join.

        Returns:
            The ranks of the ended workers. None if an aggregator has ended.
        """
        running = (*force.ranks(State.MEMBER), *force.ranks(State.JOINING))
        waits = [] if (start := force.next_start()) is None else [max(0.0, start - time.monotonic())]
        if force.ranks(State.JOINING):
            waits.append(_ASK_SECONDS)
        tasks = {self._workers[rank].ended: rank for rank in running}
        done, _ = await asyncio.wait(
            [*tasks, *(child.ended for child in self._aggregators)],
            timeout=min(waits, default=None),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if any(child.ended.done() for child in self._aggregators):
            return None
        return [tasks[task] for task in tasks if task in done]

    def _note_joined(self, force: Workforce, rank: int, failed: dict[int, Ending]) -> None:
        """Note that the present process of a rank is a member, and show it if it is a replacement."""
        if force.joined(rank):
            failed.pop(rank, None)
            took = time.monotonic() - force.started_at(rank)
            self._display.note(f"the new process of worker rank {rank} has joined after {took:.1f} s")

    async def _await_late(self, force: Workforce, failed: dict[int, Ending]) -> None:
        """Let new processes end that have joined and done their work, though the aggregator was not asked in time.

        At the end of a job it does not know its members any more.
        """
        if force.enough and (tasks := {self._workers[rank].ended: rank for rank in force.ranks(State.JOINING)}):
            done, _ = await asyncio.wait(tasks, timeout=_CLEANING_SECONDS)
            for rank in (tasks[task] for task in done):
                if self._ending(rank).code == 0:
                    self._note_joined(force, rank, failed)
                    force.finished(rank)

    async def _causes_first(self, force: Workforce) -> list[int]:
        """Return the ranks of workers that have ended by now, those first that have failed by themselves.

        If all have failed because of other ranks, those are waited for: a process may take longer to end than the
        others to hear that it does.
        """
        give_up = time.monotonic() + min(self._job.grace, CAUSE_SECONDS)
        while True:
            running = {*force.ranks(State.MEMBER), *force.ranks(State.JOINING)}
            endings = {rank: self._ending(rank) for rank in running if self._workers[rank].ended.done()}
            causes = suspects([each for each in endings.values() if each.code], running - endings.keys())
            left = give_up - time.monotonic()
            if not causes or left <= 0:
                return sorted(endings, key=lambda rank: endings[rank].is_consequence)
            tasks = [self._workers[rank].ended for rank in causes]
            await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)

    async def _membership(self, force: Workforce, address: str) -> "_Membership | None":
        """Return who is a member, and who was; None if the aggregator does not answer."""
        asked = time.monotonic()
        settings = Settings(token_file=str(self._token_file))
        try:
            status = await asyncio.to_thread(fetch_status, address, job=self._name, settings=settings)
        except ConnectError:
            return None
        workers = [worker for job in status.jobs for worker in job.workers]
        known = (*force.ranks(State.MEMBER), *force.ranks(State.JOINING))
        members = {
            worker.rank
            for worker in workers
            if worker.rank in known and asked - worker.joined_seconds > force.started_at(worker.rank)
        }
        return _Membership(members, {rank for job in status.jobs for rank in job.elastic.lost})

    async def _clean_up(self, rank: int) -> None:
        """End what the failed process of a rank has started: it may use the device that the next one needs."""
        child = self._workers.pop(rank)
        try:
            await child.end(min(self._job.grace, _CLEANING_SECONDS), asyncio.Event())
        except asyncio.CancelledError:
            # Everything is ended now.
            self._workers[rank] = child
            raise

    def _status(self, force: Workforce, failed: Sequence[Ending]) -> int:
        """Return the exit status of a job that is over, and say why it ends if too few workers are left."""
        if force.enough:
            if waiting := force.ranks(State.JOINING):
                ranks = ", ".join(map(str, waiting))
                self._display.note(f"the job is done; ending new processes that have not joined it: rank {ranks}")
            return 0
        assert self._job.elastic is not None
        left, least = force.left, self._job.elastic.minimum
        self._display.note(
            f"{left} worker{' is' if left == 1 else 's are'} left, and the job needs at least {least} (--elastic). New"
            " processes could not join, because the others let them in after a step, and make no more steps; ending"
            " everything"
        )
        self._verdict = cause(failed)
        return shell_status(self._verdict.code)


def _told(force: Workforce, ending: Ending, now: float) -> str:
    """Return what follows from the failure of a worker, for people."""
    rank = ending.rank
    text = f"worker rank {rank} {describe(ending.code)}"
    if ending.error:
        text += f" ({ending.error})"
    if not force.goes_on:
        return f"{text}; too few are left"
    left = f"{force.left} left"
    if force.state(rank) is State.DUE:
        pause = force.pause(rank, now)
        when = f" in {pause:.1f} s" if pause else ""
        return f"{text}; {left}; starting another process in its place{when}"
    if (starts := force.failed_starts(rank)) > 1:
        return f"{text}; {left}; {starts} processes in a row have ended before they had joined, so no other is started"
    return f"{text}; {left}"
