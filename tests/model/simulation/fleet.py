"""A job's workers and aggregators, and everything that can move among them."""

import contextlib
from collections.abc import Callable, Iterator, Set
from random import Random
from unittest import mock

import numpy as np

from psum.aggregator.settings import Settings
from psum.client import Operation, PsumError, Ticket
from simulation.aggregator import AggregatorProcess
from simulation.connection import Connection
from simulation.counters import Counters
from simulation.ledger import Ledger, Place, Use, value
from simulation.plan import Ending, Plan
from simulation.worker import WorkerProcess

WORKER_TIMEOUT_SECONDS = 30.0
ROUND_TIMEOUT_SECONDS = 90.0

#: Where nothing moves for a while: what is done ("send", "read", "write" or "receive"), rank, aggregator.
Frozen = Set[tuple[str, int, int]]
_NONE: Frozen = frozenset()


class Fleet:
    """The whole, and the time.

    Args:
        plan: Its make-up.
        tally: Where to count.
        log: What happens is told to it, for people.
    """

    def __init__(self, plan: Plan, tally: Counters, log: Callable[[str], None]) -> None:
        self.plan = plan
        self.tally = tally
        self.log = log
        self.now = 1000.0
        self.ledger = Ledger(plan.workers)
        self.settings = Settings(worker_timeout=WORKER_TIMEOUT_SECONDS, round_timeout=ROUND_TIMEOUT_SECONDS)
        self.addresses = [f"aggregator{i}:1" for i in range(plan.aggregators)]
        self.aggregators: list[AggregatorProcess | None] = [AggregatorProcess(self.settings) for _ in self.addresses]
        """None where the process has ended and the next one was not started yet."""
        self.workers = [self.new_worker(rank, 0) for rank in range(plan.workers)]
        self.pairs = [(r, a) for r in range(plan.workers) for a in range(plan.aggregators)]
        self.reserved: list[list[tuple[Ticket, Place]]] = [[] for _ in range(plan.workers)]
        """Operations that were announced and not started, by rank."""
        self.counts: dict[Place, list[int]] = {}
        """How many times each rank has used a key."""
        self.leavers: set[int] = set()
        """Ranks that leave as soon as nothing of theirs is under way."""
        self.absent: set[int] = set()
        """Ranks that connect to nobody yet, though their processes run."""
        if plan.ending is Ending.LATENESS and plan.workers > 1:
            self.absent.add(plan.length % plan.workers)
        self.spared = False
        """Whether aggregators are killed no more. A process that took the rank of another and then saw an aggregator
        go, before the others were back, is one that has been in the job before to the next process."""
        for pair in self.pairs:
            self.connect(*pair)

    def new_worker(self, rank: int, number: int) -> WorkerProcess:
        """A process for a rank."""
        keep_sums = self.plan.ending is not Ending.FORGETFUL
        return WorkerProcess(self.plan, self.addresses, rank=rank, number=number, now=self.now, keep_sums=keep_sums)

    # What the program does

    def places(self) -> list[Place]:
        """All that can be used."""
        return [(f"k{i}", operation) for i in range(len(self.plan.keys)) for operation in Operation]

    def reserve(self, rank: int, place: Place, priority: int) -> bool:
        """A rank announces its next use of a key; returns False where it cannot any more."""
        worker = self.workers[rank]
        if not worker.alive or rank in self.leavers or not worker.joined:
            return False
        elements, kind = self.plan.keys[int(place[0][1:])]
        try:
            ticket = worker.reserve(place[0], elements, kind, place[1], priority)
        except PsumError:
            if self.ledger.strict:
                raise
            return False
        counts = self.counts.setdefault(place, [0] * self.plan.workers)
        assert ticket.round == counts[rank]
        counts[rank] += 1
        self.reserved[rank].append((ticket, place))
        return True

    def start(self, rank: int, index: int) -> None:
        """The value of one of the announced operations is ready."""
        ticket, place = self.reserved[rank].pop(index)
        worker = self.workers[rank]
        receives = place[1] is Operation.BROADCAST and rank > 0
        elements, kind = self.plan.keys[int(place[0][1:])]
        array = value(place[0], elements, kind, ticket.round, rank, worker.number).copy()
        use = Use(rank, worker.number, place, ticket.round, kind, ticket, array)
        if receives:
            array.view(np.uint8)[:] = 0xDD
        view = array.view(np.uint8).data
        self.ledger.begin(use)
        ticket.start(None if receives else view, view, lambda error: self.ledger.end(use, error))
        worker.submit(self.now)

    # What moves

    def connect(self, rank: int, index: int) -> bool:
        """A worker opens a stream, where it has none and the aggregator takes one."""
        worker, aggregator = self.workers[rank], self.aggregators[index]
        link = worker.links[index]
        if not worker.alive or rank in self.absent or aggregator is None or link.connection is not None or link.gone:
            return False
        if self.now < worker.retry_at:
            return False
        connection = Connection(rank)
        if not aggregator.accept(connection):
            return False
        connection.requests.append(worker.hello(index, self.now))
        worker.connected(index, connection)
        return True

    def send(self, rank: int, index: int) -> bool:
        """A worker sends a message."""
        if rank in self.leavers and not self.workers[rank].busy:
            self.workers[rank].leaving = True
        return self.workers[rank].send(index, self.plan.window)

    def read(self, rank: int, index: int, random: Random) -> bool:
        """An aggregator takes a message on one of the rank's streams."""
        aggregator = self.aggregators[index]
        if aggregator is None:
            return False
        for connection in aggregator.connections:
            if connection.rank == rank and aggregator.read(connection, self.now, random, self.plan.echoes):
                self.tally["messages"] += 1
                return True
        return False

    def write(self, rank: int, index: int) -> bool:
        """An aggregator sends a message on one of the rank's streams, or sees the end of one that the worker left."""
        aggregator = self.aggregators[index]
        if aggregator is None:
            return False
        for connection in list(aggregator.connections):
            if connection.rank != rank or len(connection.responses) >= self.plan.window:
                continue
            if aggregator.write(connection, self.now):
                return True
            if not connection.worker_open and not connection.requests:
                aggregator.lose(connection, self.now)
                return True
        return False

    def receive(self, rank: int, index: int, random: Random) -> bool:
        """A worker takes a message."""
        if moved := self.workers[rank].receive(index, self.now, random, self.plan.echoes):
            self.tally["messages"] += 1
        return moved

    def sum_one(self, index: int, random: Random) -> bool:
        """An aggregator's thread has made a sum."""
        aggregator = self.aggregators[index]
        return aggregator is not None and aggregator.sum_one(random)

    def move(self, random: Random, frozen: Frozen = _NONE) -> bool:
        """Something by chance; returns False where that could not move."""
        rank, index = random.choice(self.pairs)
        what = random.choice(("send", "read", "write", "receive", "sum"))
        if what == "sum":
            return self.sum_one(index, random)
        return (what, rank, index) not in frozen and self._move(what, rank, index, random)

    def _move(self, what: str, rank: int, index: int, random: Random) -> bool:
        match what:
            case "send":
                return self.send(rank, index)
            case "read":
                return self.read(rank, index, random)
            case "write":
                return self.write(rank, index)
            case _:
                return self.receive(rank, index, random)

    def settle(self, random: Random, frozen: Frozen = _NONE, *, reconnect: bool = False) -> None:
        """Everything moves until nothing does any more.

        Args:
            random: Decides on the order.
            frozen: What does not move.
            reconnect: Whether broken connections are opened again, and aggregators that have ended started again.
        """
        directions = [(w, r, a) for w in ("send", "read", "write", "receive") for r, a in self.pairs]
        directions = [direction for direction in directions if direction not in frozen]
        for _ in range(100_000):
            moved = False
            random.shuffle(directions)
            for what, rank, index in directions:
                # Several at once, now and then: else all queues stay short.
                for _ in range(random.choice((1, 1, 3))):
                    moved |= self._move(what, rank, index, random)
            for index, aggregator in enumerate(self.aggregators):
                moved |= self.sum_one(index, random)
                if reconnect and aggregator is None:
                    moved |= self.boot(index)
                elif aggregator is not None and aggregator.draining and aggregator.drained(self.now):
                    self.kill(index, "has drained")
                    moved = True
            if reconnect:
                moved |= any([self.connect(*pair) for pair in self.pairs])
            if not moved and any(a is not None and a.registry.uncredited for a in self.aggregators):
                self.pass_time(0.02)
                moved = True
            if not moved and reconnect and any(a is not None and a.draining for a in self.aggregators):
                # Some rank that it still needs is not connected, and it takes nobody in any more.
                self.pass_time(1.0)
                moved = True
            if not moved:
                return
        raise AssertionError("messages go round and round")

    def pass_time(self, seconds: float) -> None:
        """Time passes, and time-outs are looked for."""
        self.now += seconds
        for aggregator in self.aggregators:
            if aggregator is not None:
                aggregator.tick(self.now)
        for worker in self.workers:
            if worker.alive:
                worker.expire(ROUND_TIMEOUT_SECONDS + 5, self.now)

    # What breaks

    def cut(self, rank: int, index: int, *, worker_knows: bool, aggregator_knows: bool) -> None:
        """A connection breaks; whoever does not know yet learns it later, at the end of what is under way to it."""
        connection = self.workers[rank].links[index].connection
        aggregator = self.aggregators[index]
        if connection is None:
            return
        self.tally["fault: connections cut"] += 1
        if aggregator_knows and aggregator is not None:
            aggregator.lose(connection, self.now)
        if worker_knows:
            self.workers[rank].lose(index)

    def kill(self, index: int, why: str) -> None:
        """An aggregator's process ends."""
        aggregator = self.aggregators[index]
        if aggregator is not None and (aggregator.draining or not self.spared):
            self.log(f"  aggregator {index} {why}")
            self.tally[f"fault: aggregators that ended: {why}"] += 1
            aggregator.die()
            self.aggregators[index] = None

    def boot(self, index: int) -> bool:
        """An aggregator is started, where it is not."""
        if self.aggregators[index] is not None:
            return False
        self.aggregators[index] = AggregatorProcess(self.settings)
        return True

    def kill_worker(self, rank: int) -> None:
        """A worker's process is killed; the aggregators learn it later."""
        self.tally["fault: workers killed"] += 1
        self.workers[rank].die()
        self.ledger.forget(rank)
        self.reserved[rank].clear()

    def terminate_worker(self, rank: int, random: Random) -> None:
        """A worker's process is told to end, and has as long for it as messages take."""
        self.tally["fault: workers told to end"] += 1
        worker = self.workers[rank]
        told = all(link.connection is not None and link.welcomed for link in worker.links)
        told = told and not any(a is None or a.draining for a in self.aggregators)
        worker.terminate()
        self.ledger.forget(rank)
        self.reserved[rank].clear()
        heard = told and worker.session.took_part
        self.settle(random, reconnect=True)
        worker.die()
        if heard:
            assert not self.ledger.open, "a worker was told to end, and its peers have not heard of it"

    def replace_worker(self, rank: int) -> None:
        """Another process takes the rank, and begins at the beginning."""
        self.tally["fault: workers replaced"] += 1
        self.spared = True
        self.workers[rank] = self.new_worker(rank, self.workers[rank].number + 1)
        for counts in self.counts.values():
            counts[rank] = 0

    def drain(self, index: int) -> None:
        """An aggregator is told to end."""
        aggregator = self.aggregators[index]
        if aggregator is not None and not aggregator.draining and not self.spared:
            self.tally["fault: aggregators told to stop"] += 1
            aggregator.drain(self.now + 10)

    # What holds

    def check(self) -> None:
        """Asserts what always holds on either side."""
        self.tally["invariants"] += 1
        for worker in self.workers:
            worker.session.check()
        for aggregator in self.aggregators:
            if aggregator is not None:
                aggregator.check()

    def describe(self) -> Iterator[str]:
        """Where everything stands, for people."""
        for use in self.ledger.open:
            yield f"  waits: {use}, {use.ticket!r}"
        for worker in self.workers:
            links = "".join("-" if link.connection is None else "+" for link in worker.links)
            yield f"  rank {worker.rank} process {worker.number}: links {links}, {worker.session.failure!r}"
        for index, aggregator in enumerate(self.aggregators):
            for job in aggregator.registry.jobs.values() if aggregator is not None else ():
                yield f"  aggregator {index}: {job!r} {job.failure or ''}"
                for key in job.keys.values():
                    for number, shard in key.shards.items():
                        waits = f"waiters {sorted(shard.waiters)} holder {shard.holder}" if shard.waiters else ""
                        yield f"    {key.name} {'broadcast' if key.broadcast else 'sum'} {number}: {shard!r} {waits}"


@contextlib.contextmanager
def sizes_of(plan: Plan) -> Iterator[None]:
    """Makes messages and sums small or large as the plan says."""
    with contextlib.ExitStack() as stack:
        for module in ("aggregator._outbox", "client._scheduler", "client._session"):
            stack.enter_context(mock.patch(f"psum.{module}.BATCH_BYTES", plan.batch_bytes))
        stack.enter_context(mock.patch("psum.client.core.session._KEPT_VIEW_BYTES", plan.batch_bytes))
        stack.enter_context(mock.patch("psum.aggregator.service.action_runner.SHARED_BYTES", plan.inline_bytes))
        stack.enter_context(mock.patch("simulation.aggregator.LatePool.at_once_bytes", plan.inline_bytes))
        yield
