"""Fuzzes relays: groups of workers that keep to the protocol, at a relay whose owners do not."""

import asyncio
from collections import Counter
from random import Random
from typing import Final
from unittest import mock

import numpy as np

from psum.aggregator import Server, Settings
from psum.aggregator.relay import uplinks
from psum.client import Operation
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from tests.fuzz.conversations import Conversation, Tensor
from tests.fuzz.faulty_owner import FaultyOwner, Run
from tests.fuzz.harness import LogMonitor, ViolationError
from tests.fuzz.healthy_job import HealthyJob
from tests.fuzz.streams import AbortedStream, Context, Worker

PATIENCE_SECONDS: Final = 20.0

_HEALTHY: Final = "healthy"

#: How long a relay tries to reach an owner that is gone.
_GIVE_UP_SECONDS: Final = 0.1

#: Without any progress for this long, nothing more is expected of the owners.
_QUIET_SECONDS: Final = 0.03


class RelayTarget:
    """A relay with a healthy group, of whose shards it is the owner, and with groups whose owners are faulty.

    Args:
        log: Monitors the log.
    """

    def __init__(self, log: LogMonitor) -> None:
        self.outcomes: Counter[str] = Counter()
        self._log = log
        self._number = 0

    async def start(self) -> None:
        """Start the relay, the faulty owners and the healthy group."""
        self._patch = mock.patch.object(uplinks, "_PART_SECONDS", 0.2)
        self._patch.start()
        self._server = Server(
            Settings(
                listen=("127.0.0.1:0",),
                threads=1,
                memory_budget=1 << 30,
                connect_timeout=_GIVE_UP_SECONDS,
                reconnect_timeout=_GIVE_UP_SECONDS,
                plane="inline",
            )
        )
        await self._server.start()
        self._service = self._server._service
        self._owner = FaultyOwner()
        await self._owner.start()
        hello = pb.Hello(
            protocol_version=1,
            job=_HEALTHY,
            num_workers=2,
            partition_bytes=1 << 14,
            aggregators=self._server.addresses,
            planes=[pb.PLANE_INLINE],
            group_size=2,
        )
        self._healthy = HealthyJob(hello, self._open)
        self._healthy.begin_round()
        await self._healthy.finish_round()
        relays = self._service.registries.relays
        assert relays is not None
        self._relays = relays
        self._kept = self._left_of_inputs()

    async def feed(self, random: Random) -> None:
        """Run one group from its first operation to its end."""
        self._number += 1
        async with asyncio.timeout(PATIENCE_SECONDS):
            self._healthy.begin_round()
            await GroupRun(random, f"fuzz{self._number}", self._owner, self._service._exchange, self.outcomes).run()
            await self._inquire(random)
            await self._healthy.finish_round()
        self._log.check()

    async def settle(self) -> None:
        """Check that nothing is left of earlier inputs."""
        for registry in self._service.registries:
            for job in registry.jobs.values():
                job.check()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while self._left_of_inputs() != self._kept:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise ViolationError(f"{self._left_of_inputs()} is left, expected {self._kept}") from None
        self._log.check()

    async def stop(self) -> None:
        """End the healthy group, the relay and the owners."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._healthy.end()
            await self._server.stop(0.1)
            await self._owner.stop()
        self._patch.stop()
        self.outcomes += self._owner.outcomes

    def _open(self, context: Context) -> "asyncio.Task[None]":
        return asyncio.get_running_loop().create_task(self._service._exchange(iter(()), context))  # type: ignore[arg-type]

    def _left_of_inputs(self) -> dict[str, object]:
        """Return what must be the same before and after an input."""
        return {
            "jobs": [sorted(registry.jobs) for registry in self._service.registries],
            "uplinks": len(self._relays._uplinks),
            "ending": len(self._relays._ending),
            "reserved bytes": self._service.registry.budget.reserved_bytes,
            "connections": len(self._service.connections),
            "descriptors left": self._service.descriptors.left,
        }

    async def _inquire(self, random: Random) -> None:
        """Ask the relay for the processes of the owners, whose answers are mutated."""
        hello = pb.Hello(job="asks", num_workers=4, group_size=2, aggregators=self._owner.addresses)
        request = pb.GetStatusRequest(without_jobs=True, hello=hello)
        self._owner.answers = random
        response = await self._service._get_status(request, _Asker())
        inquiries = pb.GetStatusResponse.FromString(response.SerializeToString()).inquiries
        if len(inquiries) != len(hello.aggregators):
            raise ViolationError(f"{len(inquiries)} answers about {len(hello.aggregators)} aggregators")
        for address, inquiry in zip(hello.aggregators, inquiries, strict=True):
            if inquiry.problem and inquiry.address != address:
                raise ViolationError(f"a problem with {address} is told of {inquiry.address!r}")
            self.outcomes[f"inquiry: {'answered' if not inquiry.problem else 'problem'}"] += 1


class _Asker(Context):
    def time_remaining(self) -> float:
        """Return the seconds until the caller gives up."""
        return 5.0


class GroupRun:
    """One group of workers, from its first operation to its end.

    Args:
        random: Generator of all decisions.
        job: The job's name.
        owner: The faulty owners.
        exchange: The service's handler of streams.
        outcomes: Counters to update.
    """

    def __init__(self, random: Random, job: str, owner: FaultyOwner, exchange: object, outcomes: Counter[str]) -> None:
        self._random = random
        self._owner = owner
        self._exchange = exchange
        self._outcomes = outcomes
        self._addresses = owner.addresses[: random.choice((1, 2))]
        self._conversation = Conversation.make(random, job, order_independent=True)
        size = random.randint(1, self._conversation.num_workers)
        self._ranks = sorted(random.sample(range(self._conversation.num_workers), size))
        self._workers = [Worker(self._hello(rank)) for rank in self._ranks]
        self._run = Run(random, random.choice((0.0, 0.05, 0.3)), self._sums())

    async def run(self) -> None:
        """Run the group.

        Raises:
            ViolationError: The relay violated a rule.
        """
        random, job = self._random, self._conversation.job
        self._owner.runs[job] = self._run
        tasks = [
            asyncio.get_running_loop().create_task(self._exchange(iter(()), worker))  # type: ignore[operator]
            for worker in self._workers
        ]
        for round in range(self._conversation.rounds):
            for rank, worker in zip(self._ranks, self._workers, strict=True):
                for tensor in self._conversation.tensors:
                    value = bytearray(tensor.value(rank, round))
                    worker.begin(tensor.name, tensor.element_type, tensor.operation, value)
        await self._until_quiet()
        if self._pending or random.random() < 0.3:
            # Something was lost on purpose. Nothing but the end of the owner ends these operations.
            self._run.gone.set()
        while self._pending and not all(task.done() for task in tasks):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        for worker in self._workers:
            worker.leave()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in self._workers:
            worker.connection_lost()
        self._run.gone.set()
        del self._owner.runs[job]
        for task in tasks:
            if (error := task.exception()) is not None and not isinstance(error, AbortedStream):
                raise ViolationError(f"a stream ended with {error!r}") from error
        for problem in self._run.problems:
            raise problem
        for rank, worker in zip(self._ranks, self._workers, strict=True):
            self._check(rank, worker)

    @property
    def _pending(self) -> int:
        return sum(worker.pending for worker in self._workers)

    async def _until_quiet(self) -> None:
        """Wait until all operations have ended, or nothing happens any more."""
        loop = asyncio.get_running_loop()
        state, since = None, loop.time()
        while self._pending:
            now = self._pending, sum(map(len, self._run.results.values())), self._owner.received
            if now != state:
                state, since = now, loop.time()
            elif loop.time() - since > _QUIET_SECONDS:
                return
            await asyncio.sleep(0.001)

    def _hello(self, rank: int) -> pb.Hello:
        hello = self._conversation.hello(rank)
        del hello.ranks[:], hello.aggregators[:]
        hello.aggregators.extend(self._addresses)
        hello.group_size = len(self._ranks)
        hello.resuming = False
        return hello

    def _sums(self) -> dict[tuple[int, int, int], bytes]:
        """Return what the relay must forward to each round of each shard."""
        sums = {}
        for tensor in self._conversation.tensors:
            for round in range(self._conversation.rounds):
                total = self._sum(tensor, round)
                for shard in tensor.shards:
                    sums[tensor.id, shard.index, round] = total[shard.start : shard.stop]
        return sums

    def _sum(self, tensor: Tensor, round: int) -> bytes:
        if tensor.operation is Operation.BROADCAST:
            return tensor.value(0, round) if 0 in self._ranks else b""
        dtype = tensor.element_type.numpy
        total = np.frombuffer(tensor.value(self._ranks[0], round), dtype).copy()
        for rank in self._ranks[1:]:
            total += np.frombuffer(tensor.value(rank, round), dtype)
        return total.tobytes()

    def _check(self, rank: int, worker: Worker) -> None:
        """Check that each operation of a worker ended once: with what an owner sent, or with an error that names it."""
        for ticket, outcomes in worker.outcomes.items():
            if len(outcomes) != 1:
                raise ViolationError(f"{ticket!r} ended {len(outcomes)} times: {outcomes}")
            [error] = outcomes
            self._outcomes[f"relay: operation {'done' if error is None else type(error).__name__}"] += 1
            if error is not None:
                text = str(error)
                if not self._run.reported_fault and not any(address in text for address in self._addresses):
                    raise ViolationError(f"the error of {ticket!r} does not name the owner: {error!r}")
                continue
            target = worker.targets[ticket]
            for shard in ticket.key.shards:
                where = ShardRound(ticket.key.id, shard.index, ticket.round)
                piece = bytes(target[shard.start : shard.stop])
                sent = self._run.results.get((where.id, where.shard, where.round), set())
                own = ticket.key.operation is Operation.BROADCAST and 0 in self._ranks
                if own and (b"" not in sent or piece != self._run.sums[where.id, where.shard, where.round]):
                    raise ViolationError(f"rank {rank} got a wrong value of its own group: {where}")
                if not own and piece not in sent:
                    raise ViolationError(f"rank {rank} got a result that no owner sent: {where}")
