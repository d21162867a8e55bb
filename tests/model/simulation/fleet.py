"""A job's simulated workers and aggregators, and the moves between them."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from random import Random

import numpy as np

from psum.aggregator.core.limits import Limits
from psum.client import Operation, PsumError, Ticket
from simulation import keys
from simulation.aggregator import AggregatorProcess
from simulation.client import Client
from simulation.counters import Counters
from simulation.groups import Relay, sum_tree
from simulation.keys import KeyOperation
from simulation.members import Members
from simulation.oracle import Call, Oracle, value
from simulation.plan import Ending, Plan
from simulation.stream import Stream
from simulation.worker import WorkerProcess

WORKER_TIMEOUT_SECONDS = 30.0
ROUND_TIMEOUT_SECONDS = 90.0

#: The longest time for which a client that can connect stays away while the fleet settles. Real ones come back sooner.
_AWAY_SECONDS = 10.0

Link = tuple[int, int]
"""The numbers of a client and of a process that it connects to."""

#: Moves that do not happen for a while: action ("send", "read", "write" or "receive"), client, process.
Frozen = Set[tuple[str, int, int]]
_NONE: Frozen = frozenset()


class Fleet:
    """All processes of a history, and the simulated time.

    Args:
        plan: The history's plan.
        counters: Counters to update.
        log: Called with lines that describe what happens.
    """

    def __init__(self, plan: Plan, counters: Counters, log: Callable[[str], None]) -> None:
        self.plan = plan
        self.counters = counters
        self.log = log
        self.now = 1000.0
        self.oracle = Oracle(
            plan.workers, sum_tree(plan.workers, plan.relays), self._excused, elastic=plan.elastic, spares=plan.spares
        )
        self._excused_before: set[int] = set()
        # Operations wait for several losses, one after the other.
        self._round_timeout = ROUND_TIMEOUT_SECONDS * (20 if plan.elastic else 1)
        self.limits = Limits(
            worker_timeout=WORKER_TIMEOUT_SECONDS * plan.relay_patience,
            round_timeout=self._round_timeout,
            elastic_timeout=WORKER_TIMEOUT_SECONDS,
            elastic_closed_timeout=WORKER_TIMEOUT_SECONDS,
        )
        self.aggregators: list[AggregatorProcess | None] = [self._new_process(i) for i in range(plan.processes)]
        """The processes by number. None if the process has ended and has not been restarted."""
        self.workers = [self.new_worker(rank, 0) for rank in range(plan.ranks)]
        for worker in self.workers[plan.workers :]:
            # Nobody has joined with this rank yet.
            worker.die()
        self.clients = range(plan.ranks + len(plan.relays))
        """The numbers of the clients: the workers' ranks, and after them the relays."""
        self.links = self._all_links()
        """All pairs of a client and a process that it connects to."""
        self.reserved: list[list[tuple[Ticket, KeyOperation]]] = [[] for _ in range(plan.ranks)]
        """Operations that are reserved and not started, by rank."""
        self.counts: dict[KeyOperation, list[int]] = {}
        """Number of uses of each key, by rank."""
        self.leaving_ranks: set[int] = set()
        """Ranks that leave as soon as none of their operations is running."""
        self.absent_ranks: set[int] = set()
        """Ranks whose processes run, but do not connect yet."""
        if plan.ending is Ending.LATE_JOIN and plan.workers > 1:
            self.absent_ranks.add(plan.length % plan.workers)
        self.stopped_ranks: set[int] = set()
        """Ranks whose processes do not run for a while."""
        self.parted: set[Link] = set()
        """Clients and processes that cannot reach each other for a while."""
        self.shared = 0
        """How many keys of some ranks there were."""
        self._away_since: dict[Link, float] = {}
        """Since when a client has no stream to a process and wants one."""
        self.members = Members(self)
        """Who is in the job, if it is elastic."""
        self.lost_processes: set[int] = set()
        """Processes that are never started again."""
        self.keep_aggregators = False
        """Whether aggregators are no longer killed. It is set when a process takes the rank of another one: if an
        aggregator ended then, the next aggregator process could not tell the new process of the rank from the old."""
        self._dials = Random(plan.length)
        """Decides which data connections can be opened."""
        for link in self.links:
            self.connect(*link)

    def new_worker(self, rank: int, number: int, relay: Relay | None = None, *, joining: bool = False) -> WorkerProcess:
        """Create a process for a rank. The first one of a rank, and one that replaces it, has the relay of the plan."""
        keep_sums = self.plan.ending is not Ending.NO_KEPT_SUMS
        relay = relay if joining else self.plan.relay_of(rank)
        return WorkerProcess(
            self.plan, rank=rank, number=number, now=self.now, keep_sums=keep_sums, relay=relay, joining=joining
        )

    def _all_links(self) -> list[Link]:
        return [(client, process) for client in self.clients for process in self.processes_of(client)]

    # Clients

    def processes_of(self, client: int) -> list[int]:
        """Return the processes that a client connects to."""
        if client < self.plan.ranks:
            return self.plan.processes_by(self.workers[client].relay)
        above = self.plan.above(self.plan.relays[client - self.plan.ranks])
        return list(range(self.plan.aggregators)) if above is None else [above.process]

    def clients_of(self, process: int) -> list[int]:
        """Return the clients that connect to a process."""
        return [client for client, other in self.links if other == process]

    def client(self, number: int) -> Client | None:
        """Return a client, None if it does not exist now."""
        if number < self.plan.ranks:
            return self.workers[number]
        process = self.aggregators[self.plan.relays[number - self.plan.ranks].process]
        return None if process is None else process.uplinks

    def clients_above(self, rank: int) -> set[int]:
        """Return the clients that a result passes on its way to a rank, including its worker."""
        relays = enumerate(self.plan.relays, self.plan.ranks)
        return {rank, *(number for number, relay in relays if rank in relay.ranks)}

    def groupmates(self, ranks: Iterable[int]) -> set[int]:
        """Return all ranks that have a relay in common with some of these ranks."""
        return {mate for relay in self.plan.relays if not set(ranks).isdisjoint(relay.ranks) for mate in relay.ranks}

    def name(self, client: int) -> str:
        """Return the name of a client for reports."""
        if client < self.plan.ranks:
            return f"rank {client}"
        return f"the relay of {self.plan.relays[client - self.plan.ranks].ranks}"

    # Operations of the program

    def key_operations(self) -> list[KeyOperation]:
        """Return all keys with all operations."""
        return [(keys.of_all(i), operation) for i in range(len(self.plan.keys)) for operation in Operation]

    def reserve(self, rank: int, key: KeyOperation, priority: int) -> bool:
        """Reserve a rank's next operation on a key. Return False if the rank cannot any more."""
        worker = self.workers[rank]
        if not worker.alive or rank in self.leaving_ranks | self.stopped_ranks or not worker.joined or worker.joining:
            return False
        ranks = keys.ranks_of(key)
        if ranks and rank not in ranks:
            return False
        elements, kind = self.plan.keys[keys.index_of(key)]
        try:
            ticket = worker.reserve(key[0], elements, kind, key[1], priority, ranks)
        except PsumError:
            if self.oracle.strict and not self.oracle.may_fail(rank, key):
                raise
            return False
        counts = self.counts.setdefault(key, [0] * self.plan.ranks)
        assert ticket.round == counts[rank] or self.oracle.may_fail(rank, key)
        counts[rank] += 1
        self.reserved[rank].append((ticket, key))
        return True

    def start(self, rank: int, index: int) -> None:
        """Start one of a rank's reserved operations."""
        ticket, key = self.reserved[rank].pop(index)
        worker = self.workers[rank]
        receives = key[1] is Operation.BROADCAST and rank != keys.root_of(key)
        stands_in = receives and self.plan.elastic and keys.stands_in(key)
        elements, kind = self.plan.keys[keys.index_of(key)]
        array = value(key[0], elements, kind, ticket.round, rank, worker.number).copy()
        call = Call(rank, worker.number, key, ticket.round, kind, ticket, array)
        if receives and not stands_in:
            array.view(np.uint8)[:] = 0xDD
        view = array.view(np.uint8).data
        self.oracle.begin(call)
        source = None if receives else view
        ticket.start(source, view, lambda error: self.oracle.end(call, error), stands_in=stands_in)
        worker.submit(self.now)

    # Moves

    def connect(self, number: int, index: int) -> bool:
        """Open a stream, if the client needs one and the process accepts it. Return whether it was opened."""
        client, aggregator = self.client(number), self.aggregators[index]
        if client is None or aggregator is None or number in self.absent_ranks | self.stopped_ranks:
            return False
        if (number, index) in self.parted or not client.may_connect(index, self.now):
            return False
        stream = Stream(number, direct=self._dials.random() < self.plan.direct)
        if not aggregator.accept(stream):
            return False
        client.connected(index, stream, self.now)
        return True

    def send(self, number: int, index: int) -> bool:
        """Let a client send a message."""
        if number in self.leaving_ranks and not self.workers[number].busy:
            self.workers[number].leaving = True
            # The program has closed its client. What it has reserved is never started.
            self.reserved[number].clear()
        client = self.client(number)
        return client is not None and client.send(index, self.plan.window, self.now)

    def read(self, number: int, index: int, random: Random) -> bool:
        """Let a process read a message from one of the client's streams."""
        aggregator = self.aggregators[index]
        if aggregator is None:
            return False
        for stream in aggregator.streams:
            if stream.client == number and aggregator.read(stream, self.now, random, self.plan.duplicate_rate):
                self.counters["messages"] += 1
                return True
        return False

    def write(self, number: int, index: int) -> bool:
        """Let a process send a message on one of the client's streams, or see the end of one."""
        aggregator = self.aggregators[index]
        if aggregator is None:
            return False
        for stream in list(aggregator.streams):
            if stream.client != number or len(stream.responses) >= self.plan.window:
                continue
            if aggregator.write(stream, self.now):
                return True
            if not stream.client_open and not stream.requests:
                aggregator.lose(stream, self.now)
                return True
        return False

    def receive(self, number: int, index: int, random: Random) -> bool:
        """Let a client receive a message."""
        client = self.client(number)
        if client is None:
            return False
        if moved := client.receive(index, self.now, random, self.plan.duplicate_rate):
            self.counters["messages"] += 1
        return moved

    def lose(self, number: int, index: int) -> None:
        """Let a client close its stream to a process."""
        if (client := self.client(number)) is not None:
            client.lose(index)

    def sum_one(self, index: int, random: Random) -> bool:
        """Let a process compute a sum."""
        aggregator = self.aggregators[index]
        return aggregator is not None and aggregator.sum_one(random)

    def move(self, random: Random, frozen: Frozen = _NONE) -> bool:
        """Try one random move. Return False if it was not possible."""
        client, index = random.choice(self.links)
        what = random.choice(("send", "read", "write", "receive", "sum"))
        if what == "sum":
            return self.sum_one(index, random)
        return (what, client, index) not in frozen and self._move(what, client, index, random)

    def _move(self, what: str, client: int, index: int, random: Random) -> bool:
        if client in self.stopped_ranks and what in ("send", "receive"):
            return False
        if self.plan.elastic:
            self.members.note_exclusions()
        match what:
            case "send":
                return self.send(client, index)
            case "read":
                return self.read(client, index, random)
            case "write":
                return self.write(client, index)
            case _:
                return self.receive(client, index, random)

    def settle(self, random: Random, frozen: Frozen = _NONE, *, reconnect: bool = False) -> None:
        """Make all possible moves until none is left.

        Args:
            random: Decides the order.
            frozen: Moves that do not happen.
            reconnect: Whether to reopen broken streams and restart ended aggregators.
        """
        directions = [(w, c, a) for w in ("send", "read", "write", "receive") for c, a in self.links]
        directions = [direction for direction in directions if direction not in frozen]
        for _ in range(100_000):
            moved = False
            random.shuffle(directions)
            for what, client, index in directions:
                # Sometimes several moves in a row, so that queues grow.
                for _ in range(3 if random.random() < 0.3 else 1):
                    moved |= self._move(what, client, index, random)
            for index, aggregator in enumerate(self.aggregators):
                moved |= self.sum_one(index, random)
                if reconnect and aggregator is None:
                    moved |= self.start_aggregator(index)
                elif aggregator is not None and aggregator.draining and aggregator.drained(self.now):
                    self.kill_aggregator(index, "has drained")
                    moved = True
            if reconnect:
                moved |= any([self.connect(*link) for link in self.links])
            if not moved and any(a is not None and a.uncredited for a in self.aggregators):
                self.pass_time(0.02)
                self._come_back()
                moved = True
            if not moved and reconnect and any(a is not None and a.draining for a in self.aggregators):
                # It waits for a rank that is not connected, and accepts no new streams. Its grace period must end.
                self.pass_time(1.0)
                moved = True
            if not moved:
                return
        raise AssertionError("the fleet does not settle: messages keep moving")

    def _come_back(self) -> None:
        """Reconnect clients that have been away for long, and restart the processes that they need.

        With little credit, thousands of shards follow each other, and each needs the time in which credit comes back.
        Together that is more than the worker timeout.
        """
        for (client, index), since in list(self._away_since.items()):
            if self.now - since > _AWAY_SECONDS:
                self.start_aggregator(index)
                self.connect(client, index)

    def _note_away(self) -> None:
        wanting = {
            link for link in self.links if (c := self.client(link[0])) is not None and c.may_connect(link[1], self.now)
        }
        self._away_since = {link: self._away_since.get(link, self.now) for link in wanting}

    def pass_time(self, seconds: float) -> None:
        """Advance the time and check for time-outs."""
        # In an elastic job, a longer time between two checks would be a pause of the aggregators.
        steps = math.ceil(seconds / 0.9) if self.plan.elastic else 1
        self._note_away()
        began = self.now
        for step in range(1, max(1, steps) + 1):
            self.now = began + seconds * step / max(1, steps)
            self._vouch()
            for aggregator in self.aggregators:
                if aggregator is not None:
                    aggregator.tick(self.now)
        if self.plan.elastic:
            self.members.note_exclusions()
        for worker in self.workers:
            if worker.alive:
                worker.expire(self._round_timeout + 5, self.now)

    def _vouch(self) -> None:
        """Workers behind one relay tell the owners that they live. Counterpart of psum.client.transport.vouching."""
        owners = [each for each in self.aggregators[: self.plan.aggregators] if each is not None]
        for rank, worker in enumerate(self.workers):
            behind_one = worker.relay is not None and worker.relay.above is None
            if behind_one and worker.alive and worker.joined and not worker.failed and rank not in self.stopped_ranks:
                for owner in owners:
                    owner.vouch(rank, worker.incarnation, self.now)

    # Processes

    def begin_join(self, rank: int, relay: Relay | None) -> WorkerProcess:
        """Start a process that waits to join, at a relay or at the owners. The one before, if it still lives, ends."""
        self.counters["joins begun"] += 1
        self.workers[rank].die()
        self.reserved[rank].clear()
        self.leaving_ranks.discard(rank)
        self.workers[rank] = self.new_worker(rank, self.workers[rank].number + 1, relay, joining=True)
        self.links = self._all_links()
        for index, aggregator in enumerate(self.aggregators):
            # Where it does not connect any more, nothing else notices the end of its streams.
            for stream in list(aggregator.streams) if aggregator is not None else ():
                if stream.client == rank and (rank, index) not in self.links:
                    aggregator.lose(stream, self.now)  # type: ignore[union-attr]
        return self.workers[rank]

    def kill_aggregator(self, index: int, why: str) -> None:
        """End an aggregator process."""
        aggregator = self.aggregators[index]
        if aggregator is not None and (aggregator.draining or not self.keep_aggregators):
            self.log(f"  aggregator {index} {why}")
            self.counters[f"fault: aggregators that ended: {why}"] += 1
            # A relay's uplinks end with it.
            self._excused_before = self._excused()
            aggregator.die()
            self.oracle.relay_ended |= any(relay.process == index for relay in self.plan.relays)
            self.aggregators[index] = None

    def start_aggregator(self, index: int) -> bool:
        """Start an aggregator process if none runs at this index. Return whether one was started."""
        if self.aggregators[index] is not None or index in self.lost_processes:
            return False
        self.aggregators[index] = self._new_process(index)
        return True

    def _new_process(self, index: int) -> AggregatorProcess:
        above = [self.processes_of(self.plan.ranks + i) for i, r in enumerate(self.plan.relays) if r.process == index]
        return AggregatorProcess(self.limits, lambda: self.now, self.plan.credit_bytes, *above)

    def _excused(self) -> set[int]:
        """Return the ranks that have ended because the job has failed, and that no process needs to hear that any more.

        If those processes are killed before the other ranks have heard it, nobody can tell their next processes.
        """
        failed = [number for number in self.clients if (c := self.client(number)) is not None and c.failed and c.gone]
        ranks = {rank for number in failed for rank in self._ranks_of(number)}
        # After a restart, their relay does not come back without them.
        return ranks | self.groupmates(ranks) | self._excused_before

    def _ranks_of(self, client: int) -> Sequence[int]:
        return (client,) if client < self.plan.ranks else self.plan.relays[client - self.plan.ranks].ranks

    def forget_ranked_keys(self) -> None:
        """Use the keys of some ranks no more."""
        self.counts = {key: counts for key, counts in self.counts.items() if not keys.ranks_of(key)}

    # Checks

    def check(self) -> None:
        """Assert the invariants of all processes."""
        self.counters["invariants"] += 1
        for worker in self.workers:
            worker.session.check()
        for aggregator in self.aggregators:
            if aggregator is not None:
                aggregator.check()

    def describe(self) -> Iterator[str]:
        """Describe the state of all processes, in lines of text."""
        for call in self.oracle.open:
            yield f"  waits: {call}, {call.ticket!r}"
        for worker in self.workers:
            connections = "".join("-" if connection.stream is None else "+" for connection in worker.connections)
            yield f"  rank {worker.rank} process {worker.number}: connections {connections}, {worker.session.failure!r}"
        for index, aggregator in enumerate(self.aggregators):
            for job in aggregator.jobs if aggregator is not None else ():
                yield f"  aggregator {index}: {job!r} {job.failure or ''}"
                for key in job.keys.values():
                    for number, shard in key.shards.items():
                        lacking = sorted(shard.ranks_lacking_result)
                        waits = f"ranks {lacking} lack the result, holder {shard.holder}" if lacking else ""
                        yield f"    {key.name} {'broadcast' if key.broadcast else 'sum'} {number}: {shard!r} {waits}"
