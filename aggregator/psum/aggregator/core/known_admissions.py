"""What the members of an elastic job say of admissions. Each of them says the same, in its own time.

A process is admitted by the first member that says so. The others only add that they have the results of all rounds
before. What they say must not contradict what is known.
"""

from collections.abc import Iterator

from psum.aggregator.core.admissions import Admission, admission_of
from psum.aggregator.core.elastic_membership import ElasticMembership
from psum.aggregator.core.elastic_ranks import NEVER_THERE
from psum.aggregator.core.elastic_rounds import ElasticRounds
from psum.aggregator.core.worker import processes_of
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ProtocolError


class KnownAdmissions:
    """Merges what members say of admissions into what is known of them.

    Args:
        members: The job's members, which have the last admission of each rank.
        rounds: The job's rounds, which wait for a newcomer from its first round on.
    """

    def __init__(self, members: ElasticMembership, rounds: ElasticRounds) -> None:
        self._members = members
        self._known = members.admissions
        self._rounds = rounds
        self._most = members.first.elastic.max

    def of_member(self, member: int) -> pb.Admission | None:
        """The admission of a member's process, as it is told of it. A relay is told if it has only this rank."""
        ranks = self._members.roster.ranks(member)
        admission = self._known.get(ranks[0]) if len(ranks) == 1 else None
        return None if admission is None else admission.to_message()

    def of_others(self, rank: int) -> list[pb.Admission]:
        """The admissions of other ranks, without rounds, as a rank is told that was admitted itself."""
        if rank not in self._known:
            return []
        return [each.to_message(rounds=False) for other, each in sorted(self._known.items()) if other != rank]

    def told_in(self, hello: pb.Hello) -> list[Admission]:
        """What a hello says of the admissions of other processes.

        Raises:
            ProtocolError: It makes no sense, or contradicts what is known.
        """
        # What a process says of itself comes first, and cannot contradict itself.
        itself = () if hello.ranks else (hello.rank,)
        admissions = [admission_of(each, self._most) for each in hello.admissions if each.rank not in itself]
        for admission in admissions:
            self._check(admission, hello.rank)
        return admissions

    def implied_by(self, hello: pb.Hello) -> Iterator[Admission]:
        """The admissions of a member that comes back, or of its ranks, if nobody has told of them here."""
        processes = processes_of(hello) or {hello.rank: (hello.incarnation, hello.generation)}
        for rank, (incarnation, number) in processes.items():
            generation = self._members.generation(rank)
            later = number > max(generation, 0) or (hello.resuming and generation == NEVER_THERE)
            if later and incarnation:
                yield Admission(rank, number, incarnation)

    def learn(self, admission: Admission, by: int | None) -> bool:
        """Learns that members have admitted a process.

        Args:
            admission: The admission.
            by: The member that says so; None: a relay that has not joined.

        Returns:
            Whether it is new, and the next generation of its rank must begin.

        Raises:
            ProtocolError: It contradicts what is known.
        """
        self._check(admission, by)
        rank, known = admission.rank, self._known.get(admission.rank)
        said = set() if by is None else {by}
        if admission.generation <= self._members.generation(rank):
            if known is not None and known.generation == admission.generation:
                known.said |= said
                if admission.rounds and not known.rounds:
                    known.rounds = admission.rounds
                    self._rounds.begin_at(known)
            return False
        admission.said |= said
        if self._members.incarnation(rank) == admission.incarnation:
            # It has left, as a member told, and is not expected again.
            self._known[rank] = admission
            return False
        return True

    def _check(self, admission: Admission, by: int | None) -> None:
        """Compares an admission with what is known.

        Raises:
            ProtocolError: They contradict each other.
        """
        rank, generation = admission.rank, self._members.generation(admission.rank)
        known = self._known.get(rank)
        if known is not None and known.generation == admission.generation:
            if known.incarnation != admission.incarnation:
                raise ProtocolError(
                    f"{self._members.title(by)} admitted process {admission.incarnation:#x} as number {generation}"
                    f" of rank {rank}, and others admitted {known.incarnation:#x}"
                )
        elif admission.generation == generation and self._members.loss(rank) is None:
            raise ProtocolError(
                f"{self._members.title(by)} admitted rank {rank}, whose process {generation} began with the job"
            )
