"""The members of a simulated elastic job: who is lost, who has left, and who has joined."""

from typing import TYPE_CHECKING

from simulation.groups import Relay
from simulation.worker import WorkerProcess

if TYPE_CHECKING:
    from simulation.fleet import Fleet


class Members:
    """Who is in the job, as far as any process knows.

    Args:
        fleet: The processes.
    """

    def __init__(self, fleet: "Fleet") -> None:
        self._fleet = fleet
        self._lost: set[tuple[int, int]] = set()
        """Processes that some aggregator has lost, by rank and generation."""
        self.generations = [0] * fleet.plan.workers + [-1] * fleet.plan.spares
        """The generation of the last process of each rank that was a member; -1 if there was none."""

    @property
    def survivors(self) -> list[int]:
        """The ranks that are not lost at any process, as far as any process or worker knows."""
        return [rank for rank in range(self._fleet.plan.ranks) if rank not in self._fleet.oracle.excluded]

    @property
    def lost_ranks(self) -> frozenset[tuple[int, int]]:
        """The processes that some aggregator has lost, by rank and generation."""
        self.note_exclusions()
        return frozenset(self._lost)

    def note_exclusions(self) -> None:
        """Tell the oracle which ranks are lost."""
        running = [aggregator for aggregator in self._fleet.aggregators if aggregator is not None]
        # A group whose last rank is lost has ended.
        for job in [job for aggregator in running for job in (*aggregator.jobs, *aggregator.ended_groups)]:
            for loss in job.losses(self._fleet.now):
                if (loss.rank, loss.generation) in self._lost:
                    continue
                self._lost.add((loss.rank, loss.generation))
                self._fleet.log(f"  process {loss.generation} of rank {loss.rank} is lost")
                self._fleet.counters["ranks lost"] += 1
                if loss.generation == self.generations[loss.rank]:
                    self._fleet.counters["ranks lost alive"] += self._fleet.workers[loss.rank].alive
                    self._fleet.oracle.exclude(loss.rank)

    def is_out(self, rank: int) -> bool:
        """Return whether a process may join with a rank: some aggregator has lost the last one, or there was none."""
        generation = self.generations[rank]
        return generation < 0 or (rank, generation) in self._lost or rank in self._fleet.leaving_ranks

    def knows_of_loss(self, rank: int) -> bool:
        """Return whether an aggregator that runs has lost the last process of a rank, or nobody is left to lose it."""
        jobs = [job for aggregator in self._fleet.aggregators if aggregator is not None for job in aggregator.jobs]
        lost = {(loss.rank, loss.generation) for job in jobs for loss in job.losses(self._fleet.now)}
        return not self.survivors or (rank, self.generations[rank]) in lost

    def leave(self, rank: int) -> None:
        """Let a member leave in good order. All its operations are complete."""
        self._fleet.counters["members left"] += 1
        self._fleet.leaving_ranks.add(rank)
        self._fleet.oracle.exclude(rank)

    def at(self, relay: Relay) -> list[int]:
        """Return the ranks of living members whose worker connects to a relay."""
        workers = (worker for worker in self._fleet.workers if worker.relay == relay)
        return [worker.rank for worker in workers if worker.rank in self.survivors and not worker.joining]

    def admit(self, newcomer: WorkerProcess, donor: WorkerProcess) -> None:
        """Give the state of a member to a process that was admitted. From now on it is a member as any other."""
        self._fleet.counters["joins"] += 1
        if (total := donor.session.weights_total) is not None:
            newcomer.session.adopt_weights(total)
        newcomer.session.joins.begin()
        newcomer.session.joins.adopt(donor.session.joins.admissions.admitted.values())
        newcomer.joining = False
        uses = self._fleet.counts
        for counts in uses.values():
            counts[newcomer.rank] = counts[donor.rank]
        self._fleet.oracle.include(newcomer.rank, {key: counts[donor.rank] for key, counts in uses.items()})

    def check(self) -> None:
        """Assert that all processes know of the same losses. To be called when all messages have arrived."""
        aggregators = [aggregator for aggregator in self._fleet.aggregators if aggregator is not None]
        known = [
            list(job.members.roster.known) for aggregator in aggregators for job in aggregator.jobs if not job.forwards
        ]
        # A rank that was lost at an aggregator of which nobody has heard goes on.
        agreed = all(ranks == known[0] and set(ranks).issuperset(self.survivors) for ranks in known)
        assert not self.survivors or agreed, f"aggregators have the members {known}; survivors are {self.survivors}"
