"""The members of an elastic job: which ranks are lost, and who may come back."""

from collections.abc import Iterable, Iterator

from psum.aggregator.core import elastic_texts
from psum.aggregator.core.elastic_roster import ElasticRoster
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.losses import Loss, Losses
from psum.aggregator.core.membership import Membership
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import FaultError


class ElasticMembership(Membership):
    """See Membership. What would end another job makes a rank lost here: `due` says which, and `lose` notes it.

    Args:
        hello: The first worker's hello, which is elastic.
        limits: How long the place of a vanished worker is kept.
        before: See Membership.
    """

    roster: ElasticRoster

    def __init__(self, hello: pb.Hello, limits: Limits, before: "Membership | None" = None) -> None:
        self.losses = Losses()
        """The ranks that are lost."""
        self._replaced: dict[int, str] = {}
        """Ranks for which another process has come, and why they are lost."""
        super().__init__(hello, limits, before)
        for rank in self._left_before:
            self.roster.leave(rank)

    def _make_roster(self) -> ElasticRoster:
        return ElasticRoster(self.first.num_workers, self.first.elastic.min)

    def join(self, hello: pb.Hello, peer: str, now: float) -> tuple[FaultError | None, FaultError | None]:
        """See Membership. The job never fails. A process of a lost rank is refused."""
        if (loss := self.losses.of(hello.rank)) is not None:
            return self._refusal(loss, hello, peer, now), None
        had_left = hello.rank in self._left_before
        refusal, failure = super().join(hello, peer, now)
        if had_left and hello.rank not in self._left_before:
            self.roster.take_back(hello.rank)
        if failure is not None:
            # Another process has come for a rank, so nobody waits for the one before.
            self._replaced[hello.rank] = elastic_texts.replaced(hello, peer)
        return refusal, None

    def learn_departures(self, hello: pb.Hello, peer: str, now: float) -> None:
        """See Membership. Nothing waits for those who have left."""
        super().learn_departures(hello, peer, now)
        for rank in self.departed:
            self.roster.leave(rank)

    def inherit(self) -> FaultError | None:
        """See Membership. Those who begin with the first round are lost instead: see `newcomers`."""
        self._inherits = True
        return None

    def newcomers(self, now: float) -> list[Loss]:
        """The ranks of processes that have joined as new ones, now that a rank has a sum of an earlier process."""
        return [
            Loss(rank, elastic_texts.began_anew(worker), now, "began anew")
            for rank, worker in self.workers.items()
            if not worker.hello.resuming and rank not in self.roster.gone
        ]

    def overdue(self, now: float) -> FaultError | None:
        """See Membership. An elastic job does not fail because of lost ranks."""
        return None

    def have_resumed(self, ranks: Iterable[int]) -> bool:
        """Whether one of these ranks has come back to this process, which may have learned rounds from it."""
        return any((worker := self.workers.get(rank)) is not None and worker.hello.resuming for rank in ranks)

    def resume(self) -> None:
        """Notes that all members have been in the job before: what this process knew of their rounds is forgotten."""
        for rank, worker in self.workers.items():
            if rank not in self.losses:
                worker.hello.resuming = True

    def due(self, now: float) -> list[Loss]:
        """The ranks that are lost by now and have not been noted as lost."""
        return list(self._due(now))

    def lose_rank(self, loss: Loss) -> bool:
        """Notes that a rank is lost. Returns whether that is new, and the rank has not left in good order before."""
        if loss.rank in self.departures.left or not self.losses.add(loss):
            return False
        self._replaced.pop(loss.rank, None)
        self.roster.lose(loss.rank)
        if (worker := self.workers.get(loss.rank)) is not None:
            worker.uncredited.clear()
            worker.credited.clear()
        for other in self.workers.values():
            other.needed_by.discard(loss.rank)
        return True

    def _due(self, now: float) -> Iterator[Loss]:
        for rank, text in self._replaced.items():
            yield Loss(rank, text, now, "replaced")
        for worker in self._gone_for(1.0, now):
            if worker.hello.rank not in self.losses:
                reason = "closed" if worker.closed else "silent"
                yield Loss(worker.hello.rank, elastic_texts.vanished(worker, now), now, reason)
        if self._resumed_at is not None and not self.complete and now - self._resumed_at > self._worker_timeout:
            for rank in self.roster.not_joined():
                yield Loss(rank, elastic_texts.not_back(self._worker_timeout), now, "not back")

    def _refusal(self, loss: Loss, hello: pb.Hello, peer: str, now: float) -> FaultError:
        """Why a process of a lost rank is refused: it is the lost one, or a new one."""
        holder, job = self.workers.get(hello.rank), self.first.job
        if hello.resuming or (holder is not None and holder.hello.incarnation == hello.incarnation != 0):
            return elastic_texts.excluded(job, loss, now)
        return elastic_texts.occupied(job, loss, hello, peer, now)
