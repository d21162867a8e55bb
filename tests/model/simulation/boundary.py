"""A step boundary at which a process joins. It stands for the roll calls and the transfer of the state.

All members have read the same table, so each of them admits the process as soon as it has all results of the step,
whatever happens meanwhile. The newcomer has the state when all have admitted it and all aggregators have welcomed it.
Then the members go on.
"""

from random import Random

from psum.client import WorkerLostError
from psum.client.core.roll_call import Process
from simulation.fleet import Fleet
from simulation.worker import WorkerProcess


class Boundary:
    """One join.

    Args:
        fleet: The fleet. All members are at rest, and know of the candidate.
        newcomer: The process that is to be admitted.

    Attributes:
        newcomer: The same.
        admitted_by: The ranks that have admitted it.
    """

    def __init__(self, fleet: Fleet, newcomer: WorkerProcess) -> None:
        self.newcomer = newcomer
        self.admitted_by: list[int] = []
        self._fleet = fleet
        self._process = Process(newcomer.rank, newcomer.incarnation)
        self._to_admit = self._members
        for rank in self._to_admit:
            known = fleet.workers[rank].session.joins.admissions.candidate
            assert known == self._process, f"rank {rank} knows of the candidate {known} instead of {self._process}"

    def __repr__(self) -> str:
        return f"<Boundary of {self._process} admitted by {self.admitted_by}, not by {self._to_admit}>"

    def advance(self, random: Random, most: int | None = None) -> None:
        """Let members that are at the boundary admit the newcomer, at most so many of them."""
        fleet = self._fleet
        self._to_admit = [rank for rank in self._to_admit if rank in self._members]
        there = [rank for rank in self._to_admit if not fleet.workers[rank].busy and not fleet.reserved[rank]]
        for rank in random.sample(there, len(there))[:most]:
            generation = fleet.workers[rank].session.joins.admit(self._process)
            fleet.log(f"  rank {rank} admits process {generation} of rank {self.newcomer.rank}")
            if not self.admitted_by:
                fleet.members.generations[self.newcomer.rank] = generation
            assert generation == fleet.members.generations[self.newcomer.rank]
            self._to_admit.remove(rank)
            self.admitted_by.append(rank)

    @property
    def is_over(self) -> bool:
        """Whether all members have admitted the newcomer, and it is here or lost.

        If those that have lost it have ended before others heard of that, it may still be let in.
        """
        here = self.newcomer.joined and self.newcomer.alive
        lost = self._is_out and (not self.admitted_by or self._fleet.members.knows_of_loss(self.newcomer.rank))
        return not set(self._to_admit).intersection(self._members) and (lost or here)

    def end(self, random: Random) -> None:
        """Give the newcomer the state, and let the members go on."""
        fleet = self._fleet
        members = [fleet.workers[rank] for rank in self._members]
        refusal = self.newcomer.session.failure
        ended = (
            isinstance(refusal, WorkerLostError) and bool(fleet.members.survivors) and not self.newcomer.found_nobody
        )
        assert not ended, f"{self._process} was told that the job has ended: {refusal}"
        if self._is_out and (self.newcomer.joined or self.newcomer.failed):
            self.newcomer.die()
        elif self._is_out:
            fleet.counters["joins that begin again"] += self.newcomer.alive
        elif members:
            fleet.members.admit(self.newcomer, random.choice(members))
            self.newcomer.session.joins.complete()
        for member in members:
            member.session.joins.complete()
        fleet.forget_ranked_keys()

    @property
    def _members(self) -> list[int]:
        """The ranks of processes that take part. Some may be lost at an aggregator of which nobody has heard."""
        workers = self._fleet.workers
        present = [w for w in workers if w.alive and not w.joining and not w.failed and w is not self.newcomer]
        return [worker.rank for worker in present if worker.rank not in self._fleet.leaving_ranks]

    @property
    def _is_out(self) -> bool:
        return self._fleet.members.is_out(self.newcomer.rank) or not self._fleet.members.survivors
