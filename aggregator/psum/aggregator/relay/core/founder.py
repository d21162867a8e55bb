"""A process that joins an elastic job at a relay which has no group: the relay joins the owners' job with it alone."""

from psum.aggregator.core.admissions import Admission
from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.worker import Worker
from psum.v1 import aggregator_pb2 as pb


class Founder:
    """What owners have said of such a process. Each welcomes the relay when all members have admitted the process.

    Args:
        candidate: The process, which waits at the relay.
    """

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self._generation = 0
        self._rounds: dict[int, int] = {}

    def welcomed(self, admission: pb.Admission) -> None:
        """Takes what an owner says of the admission: the rounds of the keys that have shards there."""
        self._generation = admission.generation
        self._rounds.update(zip(admission.ids, admission.rounds, strict=True))

    @property
    def admission(self) -> Admission:
        """The admission, as all owners together have told it."""
        hello = self.candidate.hello
        return Admission(hello.rank, self._generation, hello.incarnation, self._rounds)

    @property
    def worker(self) -> Worker:
        """The process as the only member of its group."""
        return Worker(self.candidate.hello, self.candidate.peer, joined=self.candidate.since, last_heard=0.0)
