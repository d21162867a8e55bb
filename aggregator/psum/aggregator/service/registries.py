"""The jobs of one process: those of the fleet, whose shards it owns, and those of groups that it relays for."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from psum.aggregator.core.actions import Action, UplinkAction
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.job import Job
from psum.aggregator.core.registry import Registry
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import FaultError

if TYPE_CHECKING:
    from psum.aggregator.relay.relays import Relays


class Registries:
    """Finds a worker's registry. A job of the fleet and one of a group may have one name.

    Args:
        fleet: The jobs of the fleet.
        make_relays: Makes what relays need. Called in another thread when the first worker asks for a relay, because it
            imports a part of the client.
    """

    def __init__(self, fleet: Registry, make_relays: Callable[[], "Callable[[], Relays]"]) -> None:
        self.fleet = fleet
        self.relays: Relays | None = None
        """The groups that this process relays for; None while no worker has asked for it."""
        self._load = make_relays
        self._loading = asyncio.Lock()

    async def begin_relaying(self) -> None:
        """Makes this process ready to relay. To be called before a hello that asks for it is handled."""
        async with self._loading:
            if self.relays is None:
                self.relays = (await asyncio.to_thread(self._load))()

    def of(self, hello: pb.Hello) -> Registry:
        """The registry of a worker's job."""
        if not hello.group_size:
            return self.fleet
        assert self.relays is not None, "begin_relaying comes first"
        return self.relays.registry

    def goes_on_without(self, hello: pb.Hello, peer: str, now: float) -> FaultError | None:
        """Why a process cannot begin with the first round in a relay's group: its job goes on without it.

        An owner in this process knows that, also if all of the group were lost before. A worker that has asked its
        relay for the aggregators' processes knows it from all owners: see `vacant_ranks`.
        """
        job = self.fleet.jobs.get(hello.job) if hello.group_size and not hello.resuming else None
        if not isinstance(job, ElasticJob) or job.failure is not None:
            return None
        return job.members.goes_on_without(hello, peer, now)

    def vacant_ranks(self, name: str) -> list[int]:
        """The ranks without a process of an elastic job of the fleet that goes on; none if there is no such job."""
        job = self.fleet.jobs.get(name)
        return job.members.vacant_ranks() if isinstance(job, ElasticJob) and job.failure is None else []

    def vouch(self, name: str, alive: pb.Alive, now: float) -> pb.Standing.ValueType:
        """A worker of a job of the fleet says past its relay that it lives; see Vouchers. Returns its standing here."""
        job = self.fleet.jobs.get(name)
        if not isinstance(job, ElasticJob) or job.failure is not None:
            return pb.STANDING_UNSPECIFIED
        return job.members.vouch(alive.rank, alive.incarnation, now)

    def __iter__(self) -> Iterator[Registry]:
        yield self.fleet
        if self.relays is not None:
            yield self.relays.registry

    def jobs(self) -> Iterator[Job]:
        """All jobs in progress."""
        for registry in self:
            yield from registry.jobs.values()

    def groups(self) -> Iterator[tuple[Job, list[pb.UplinkStatus], int]]:
        """Each group's job, what it forwards to, and how many streams to there were opened again."""
        if self.relays is not None:
            for job in self.relays.registry.jobs.values():
                uplinks = self.relays.of(job)
                yield job, self.relays.status(job), (0 if uplinks is None else uplinks.reconnects)

    def totals(self) -> tuple[int, int]:
        """Payload bytes received from workers and sent to them since this process started."""
        received, sent = zip(*(registry.counters.totals() for registry in self), strict=True)
        return sum(received), sum(sent)

    def tick(self, now: float) -> Iterator[tuple[Job, Action]]:
        """Handles time-outs; see Registry."""
        for registry in self:
            yield from registry.tick(now)

    @property
    def uncredited(self) -> bool:
        """Whether a job holds credit, so that `tick` should be called soon."""
        return any(registry.uncredited for registry in self)

    def settle(self, job: Job, now: float) -> None:
        """Ends a job if it is over."""
        for registry in self:
            registry.settle(job, now)

    def plan_drain(self) -> dict[int, set[tuple[int, int, int]]]:
        """The rounds to finish before this process ends, as (key's id, shard, round), by the job's id()."""
        rounds = {id(job): set(job.drain()) for job in self.fleet.jobs.values()}
        if self.relays is not None:
            self.relays.plan_drain(self.fleet, rounds)
        return rounds

    def unfinished(self, rounds: Mapping[int, set[tuple[int, int, int]]]) -> int:
        """How many of these rounds are open and can still be finished.

        Args:
            rounds: The rounds of each job, by its id().
        """
        still_open = {id(job): set(job.open_rounds()) for job in self.fleet.jobs.values()}
        if self.relays is not None:
            still_open |= self.relays.still_open(self.fleet)
        return sum(len(rounds.get(job_id, set()) & here) for job_id, here in still_open.items())

    def tell_uplinks(self, job: Job, action: UplinkAction) -> None:
        """Carries out an action of a group's job that concerns its uplinks."""
        assert self.relays is not None
        self.relays.tell(job, action)

    def uplinks(self, job: Job) -> list[pb.UplinkStatus]:
        """The state of each way to the aggregators that a group's job forwards to; none if the job is no group's."""
        return self.relays.status(job) if self.relays is not None and job.forwards else []

    def end_inquiries(self) -> None:
        """Answers all who wait for other aggregators' answers: this process is about to end."""
        if self.relays is not None:
            self.relays.end_inquiries()

    async def close(self) -> None:
        """Ends all connections to other aggregators."""
        if self.relays is not None:
            await self.relays.close()
