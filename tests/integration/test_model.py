"""Sessions and jobs together, in random histories, against a trivial model: every rank gets every round's sum, once.

No network and no clock: each pair of worker and aggregator has two queues, and what is delivered next is chance.
Connections break with everything that is under way in them, and aggregators are started again, knowing nothing.
"""

import math
from collections import deque
from functools import partial
from random import Random

import hypothesis
import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from psum.aggregator._actions import Action, Ask, Deliver, Report, ReturnCredit, Sum
from psum.aggregator._job import Job
from psum.client import ElementType, Operation, PsumError, Ticket
from psum.client._session import Session
from psum.v1 import aggregator_pb2 as pb
from psum.wire import decode, encode, split

KEYS = {"a": 1, "b": 5, "c": 40, "d": 0}
OPERATIONS = list(Operation)


class Fleet(RuleBasedStateMachine):
    """Some workers' sessions and some aggregators' jobs, joined by queues."""

    @initialize(
        workers=st.integers(2, 3),
        aggregators=st.integers(1, 2),
        credit=st.sampled_from([1, 32, 1 << 20]),
        partition=st.sampled_from([16, 64, 1 << 20]),
    )
    def build(self, workers: int, aggregators: int, credit: int, partition: int) -> None:
        self.now = 0.0
        self.workers = workers
        addresses = [f"aggregator{i}:1" for i in range(aggregators)]
        self.hellos = {
            (rank, index): pb.Hello(
                job="model",
                rank=rank,
                num_workers=workers,
                incarnation=rank,
                aggregators=addresses,
                aggregator_index=index,
            )
            for rank in range(workers)
            for index in range(aggregators)
        }
        self.jobs = [
            Job(self.hellos[0, index], worker_timeout=math.inf, round_timeout=math.inf) for index in range(aggregators)
        ]
        self.connected: set[tuple[int, int]] = set()
        self.submitted: deque[Ticket] = deque()
        self.sessions = [
            Session(
                addresses, (), rank=r, partition_bytes=partition, credit_bytes=credit, hand_over=self.submitted.append
            )
            for r in range(workers)
        ]
        pairs = [(r, a) for r in range(workers) for a in range(aggregators)]
        self.requests: dict[tuple[int, int], deque[bytes]] = {pair: deque() for pair in pairs}
        self.responses: dict[tuple[int, int], deque[bytes]] = {pair: deque() for pair in pairs}
        self.sums: list[tuple[Job, int, Sum]] = []
        self.reserved: list[list[Ticket]] = [[] for _ in range(workers)]
        self.results: dict[Ticket, np.ndarray] = {}  # type: ignore[type-arg]
        self.outcomes: dict[Ticket, list[PsumError | None]] = {}
        self.rounds: dict[tuple[str, Operation], list[int]] = {}
        for rank, index in self.hellos:
            self.connect(rank, index)

    @rule(data=st.data(), name=st.sampled_from(sorted(KEYS)), operation=st.sampled_from(OPERATIONS))
    def reserve(self, data: st.DataObject, name: str, operation: Operation) -> None:
        """A worker announces its next operation on a key."""
        rank = data.draw(st.integers(0, self.workers - 1))
        done = self.rounds.setdefault((name, operation), [0] * self.workers)
        done[rank] += 1
        ticket = self.sessions[rank].reserve(
            0, name, (KEYS[name],), ElementType.INT32, operation, data.draw(st.integers(-3, 3))
        )
        assert ticket.round == done[rank] - 1
        self.reserved[rank].append(ticket)

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        """The value of some announced operation becomes ready, in any order."""
        rank = data.draw(st.integers(0, self.workers - 1))
        if self.reserved[rank]:
            self.start_one(rank, data.draw(st.integers(0, len(self.reserved[rank]) - 1)))

    @rule(name=st.sampled_from(sorted(KEYS)), operation=st.sampled_from(OPERATIONS))
    def step(self, name: str, operation: Operation) -> None:
        """All ranks use a key once more, those that are behind as often as it takes."""
        done = self.rounds.setdefault((name, operation), [0] * self.workers)
        target = max(done) + 1
        for rank in range(self.workers):
            while done[rank] < target:
                done[rank] += 1
                self.reserved[rank].append(
                    self.sessions[rank].reserve(0, name, (KEYS[name],), ElementType.INT32, operation, 0)
                )
            while self.reserved[rank]:
                self.start_one(rank, len(self.reserved[rank]) - 1)

    @rule(moves=st.integers(1, 60), random=st.randoms(use_true_random=False))
    def move(self, moves: int, random: Random) -> None:
        """Messages are sent and arrive, and sums are made, in any order."""
        pairs = sorted(self.hellos)
        for _ in range(moves):
            match random.randrange(4):
                case 0:
                    self.send_one(*random.choice(pairs))
                case 1:
                    self.arrive_one(*random.choice(pairs))
                case 2:
                    self.answer_one(*random.choice(pairs))
                case 3 if self.sums:
                    self.finish_one(random.randrange(len(self.sums)))

    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        """A connection breaks; whatever was under way in it is lost."""
        self.disconnect(*data.draw(st.sampled_from(sorted(self.hellos))))

    @rule()
    def reconnect(self) -> None:
        """The workers get through to all aggregators again."""
        for rank, index in self.hellos:
            self.connect(rank, index)

    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        """An aggregator is killed and started again."""
        index = data.draw(st.integers(0, len(self.jobs) - 1))
        for rank in range(self.workers):
            self.disconnect(rank, index)
            self.hellos[rank, index].resuming = True
        self.jobs[index] = Job(self.hellos[0, index], worker_timeout=math.inf, round_timeout=math.inf)
        self.sums = [entry for entry in self.sums if entry[1] != index]

    @rule(seconds=st.sampled_from([0.001, 0.02, 1.0]))
    def time_passes(self, seconds: float) -> None:
        """Credit that is held for long is returned."""
        self.now += seconds
        for index, job in enumerate(self.jobs):
            self.perform(index, job.tick(self.now))

    @invariant()
    def everything_is_consistent(self) -> None:
        """Both sides keep their invariants."""
        for session in getattr(self, "sessions", []):
            session.check()
        for job in getattr(self, "jobs", []):
            job.check()

    def teardown(self) -> None:
        """When all ranks have done the same operations and every message has arrived, all have their sums."""
        if not hasattr(self, "sessions"):
            return
        for (name, operation), done in self.rounds.items():
            for rank, count in enumerate(done):
                for _ in range(max(done) - count):
                    self.reserved[rank].append(
                        self.sessions[rank].reserve(0, name, (KEYS[name],), ElementType.INT32, operation, 0)
                    )
        for rank, tickets in enumerate(self.reserved):
            while tickets:
                self.start_one(rank, len(tickets) - 1)
        for rank, index in self.hellos:
            self.connect(rank, index)
        moved = True
        while moved:
            moved = False
            for pair in self.requests:
                moved |= self.send_one(*pair) | self.arrive_one(*pair) | self.answer_one(*pair)
            while self.sums:
                self.finish_one(0)
                moved = True
            if not moved and any(job.uncredited for job in self.jobs):
                self.time_passes(1.0)
                moved = True
            self.everything_is_consistent()
        for ticket, outcomes in self.outcomes.items():
            assert outcomes == [None], ticket
            np.testing.assert_array_equal(self.results[ticket], self.expected(ticket))
        assert all(not session.running for session in self.sessions)

    def value(self, rank: int, ticket: Ticket) -> np.ndarray:  # type: ignore[type-arg]
        return (np.arange(ticket.key.elements) + 1000 * ticket.round + 7 * rank).astype(np.int32)

    def expected(self, ticket: Ticket) -> np.ndarray:  # type: ignore[type-arg]
        if ticket.key.operation is Operation.BROADCAST:
            return self.value(0, ticket)
        return sum((self.value(r, ticket) for r in range(self.workers)), np.zeros(ticket.key.elements, np.int32))

    def start_one(self, rank: int, index: int) -> None:
        ticket = self.reserved[rank].pop(index)
        value = self.results[ticket] = self.value(rank, ticket)
        receives = ticket.key.operation is Operation.BROADCAST and rank > 0
        if receives:
            value[:] = -1
        view = value.view(np.uint8).data
        outcomes = self.outcomes[ticket] = []
        ticket.start(None if receives else view, view, outcomes.append)
        self.sessions[rank].submit(self.submitted.popleft(), self.now)
        self.report(rank)

    def connect(self, rank: int, index: int) -> None:
        if (rank, index) in self.connected:
            return
        self.connected.add((rank, index))
        assert self.jobs[index].join(self.hellos[rank, index], "peer", self.now) == ([], None)
        self.sessions[rank].reconnected(index)

    def disconnect(self, rank: int, index: int) -> None:
        if (rank, index) in self.connected:
            self.connected.remove((rank, index))
            self.requests[rank, index].clear()
            self.responses[rank, index].clear()
            self.jobs[index].lost(rank, self.now)

    def send_one(self, rank: int, aggregator: int) -> bool:
        if (rank, aggregator) not in self.connected:
            return False
        message = self.sessions[rank].next_message(aggregator)
        if message is not None:
            self.requests[rank, aggregator].append(message)
        return message is not None

    def arrive_one(self, rank: int, aggregator: int) -> bool:
        queue, job = self.requests[rank, aggregator], self.jobs[aggregator]
        if not queue:
            return False
        request, payload = decode(pb.ExchangeRequest, queue.popleft())
        kind = request.WhichOneof("kind")
        pieces = split(payload, getattr(request, kind).shards) if kind in ("push", "restore") else []
        for key in request.declare.keys:
            self.perform(aggregator, job.declare(rank, key, self.now))
        for entry, piece in zip(request.push.shards, pieces, strict=False):
            self.perform(aggregator, job.contribute(rank, entry, piece, self.now))
        for entry, piece in zip(request.restore.shards, pieces, strict=False):
            self.perform(aggregator, job.restore(rank, entry, piece))
        for entry in request.pull.shards:
            self.perform(aggregator, job.contribute(rank, entry, None, self.now))
        return True

    def answer_one(self, rank: int, aggregator: int) -> bool:
        queue = self.responses[rank, aggregator]
        if not queue:
            return False
        self.sessions[rank].receive(aggregator, queue.popleft(), self.now)
        self.report(rank)
        return True

    def finish_one(self, index: int) -> None:
        job, aggregator, action = self.sums.pop(index)
        arrays = [np.frombuffer(c, np.int32) for c in action.contributions]
        total = np.sum(arrays, axis=0, dtype=np.int32).tobytes()
        if action.restored:
            self.perform(aggregator, job.restored(action.key, action.shard, action.round, total))
        else:
            self.perform(aggregator, job.summed(action.key, action.shard, total))

    def report(self, rank: int) -> None:
        session = self.sessions[rank]
        finished, session.finished = session.finished, []
        for ticket, error in finished:
            assert ticket.done is not None
            ticket.done(error)

    def perform(self, aggregator: int, actions: list[Action]) -> None:
        for action in actions:
            send = partial(self.respond, aggregator)
            match action:
                case Sum():
                    self.sums.append((self.jobs[aggregator], aggregator, action))
                case Deliver(key, shard, round, priority, result, ranks):
                    assert isinstance(result, bytes)
                    for rank in ranks:
                        payload = b"" if key.broadcast and rank == 0 else result
                        entry = pb.ShardRound(
                            id=key.id, shard=shard, round=round, priority=priority, length=len(payload)
                        )
                        send(rank, pb.ExchangeResponse(result=pb.Result(shards=[entry])), payload)
                case ReturnCredit(rank, rounds):
                    entries = [pb.ShardRound(id=k, shard=s, round=r) for k, s, r in rounds]
                    send(rank, pb.ExchangeResponse(taken=pb.Taken(shards=entries)), b"")
                case Ask(rank, rounds):
                    entries = [pb.ShardRound(id=k, shard=s, round=r) for k, s, r in rounds]
                    send(rank, pb.ExchangeResponse(want=pb.Want(shards=entries)), b"")
                case Report(fault, _):
                    raise AssertionError(fault)

    def respond(self, aggregator: int, rank: int, message: pb.ExchangeResponse, payload: bytes) -> None:
        if (rank, aggregator) in self.connected:
            self.responses[rank, aggregator].append(encode(message, payload))


TestFleet = Fleet.TestCase
TestFleet.settings = hypothesis.settings(max_examples=300, stateful_step_count=80, deadline=None)
