"""Processes that wait to join an elastic job, and those that its members have admitted, as one member knows them.

Aggregators report candidates, and are told of admissions. They do not know each other, and each may be started again.
So a member tells all of them, before anything else, and repeats it in each hello.
"""

from collections.abc import Iterable, Mapping

from psum.client.core.roll_call import Process
from psum.v1 import aggregator_pb2 as pb


class Admissions:
    """The candidates, the admissions, and how many processes each rank had before its present one.

    Args:
        aggregators: How many aggregators there are. They are named by their index.
        num_workers: The nominal size of the job. The first processes of these ranks are not admitted, but begin it.
    """

    def __init__(self, aggregators: int, num_workers: int) -> None:
        self.news: dict[int, pb.Admission] = {}
        """The admission that an aggregator must be told of before anything else, for each that must."""
        self.admitted: dict[int, pb.Admission] = {}
        """For each rank whose present process was admitted: who was, without rounds."""
        self._candidates: list[dict[Process, str]] = [{} for _ in range(aggregators)]
        """The candidates that each aggregator has reported, and who they are, for people."""
        self._in_group: set[Process] = set()
        """The candidates that wait at this member's relay, as it has reported."""
        self._underway: dict[int, pb.Admission] = {}
        """The admission that is not complete yet, with its rounds, for each aggregator."""
        self._num_workers = num_workers

    def note(self, aggregator: int, candidates: Iterable[pb.Candidate]) -> None:
        """Notes the candidates that an aggregator reports: all that it has."""
        listed = list(candidates)
        self._candidates[aggregator] = {Process(each.rank, each.incarnation): each.worker for each in listed}
        self._in_group.update(Process(each.rank, each.incarnation) for each in listed if each.in_group)

    def forget(self, aggregator: int) -> None:
        """Forgets what an aggregator has reported: its stream broke, and on the next one it reports again."""
        self._candidates[aggregator] = {}

    @property
    def candidate(self) -> Process | None:
        """The candidate with the lowest rank that every aggregator has reported, None if there is none."""
        if not self._candidates or not all(self._candidates):
            return None
        return min(set(self._candidates[0]).intersection(*self._candidates[1:]), default=None)

    @property
    def waiting(self) -> dict[Process, str]:
        """All candidates that some aggregator has reported, and who they are, for people."""
        return {process: worker for reported in self._candidates for process, worker in reported.items()}

    def generation(self, rank: int) -> int:
        """How many processes of a rank were members before its present one."""
        known = self.admitted.get(rank)
        return 0 if known is None else known.generation

    def next_generation(self, rank: int) -> int:
        """The generation that a rank's next process will have: how many were members before it, lost or not."""
        return self.generation(rank) + 1 if rank < self._num_workers or rank in self.admitted else 0

    def admit(self, process: Process, rounds: Mapping[int, Mapping[int, int]]) -> int:
        """Notes that the members have admitted a process.

        Args:
            process: Who is admitted.
            rounds: For each aggregator the next round of each key that it is told of, by the key's id.

        Returns:
            The newcomer's generation.
        """
        generation = self.next_generation(process.rank)
        in_group = process in self._in_group
        self._in_group.discard(process)
        self.admitted[process.rank] = _admission(process, generation, in_group=in_group)
        for aggregator, keys in rounds.items():
            admission = _admission(process, generation, in_group=in_group)
            admission.ids.extend(keys.keys())
            admission.rounds.extend(keys.values())
            self._underway[aggregator] = self.news[aggregator] = admission
        return generation

    def complete(self) -> None:
        """Notes that the newcomer is a member as any other, or is lost: nobody needs to be told the rounds again."""
        self._underway.clear()
        self.news.clear()

    def take_news(self, aggregator: int) -> pb.Admission | None:
        """The admission that an aggregator was not told of. It is told now."""
        return self.news.pop(aggregator, None)

    def for_hello(self, aggregator: int) -> list[pb.Admission]:
        """What an aggregator is told in a hello, since it may have been started again: who was admitted."""
        underway = self._underway.get(aggregator)
        return [
            underway if underway is not None and underway.rank == rank else admission
            for rank, admission in sorted(self.admitted.items())
        ]

    def learn(self, admitted: Iterable[pb.Admission]) -> None:
        """Takes over, in a process that has been admitted, what the others know of earlier admissions.

        Who of these belongs to the group of this process's relay, it does not know.
        """
        for each in admitted:
            if each.rank not in self.admitted or self.admitted[each.rank].generation < each.generation:
                self.admitted[each.rank] = _admission(Process(each.rank, each.incarnation), each.generation)


def _admission(process: Process, generation: int, *, in_group: bool = False) -> pb.Admission:
    return pb.Admission(rank=process.rank, generation=generation, incarnation=process.incarnation, in_group=in_group)
