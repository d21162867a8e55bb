"""Sessions and jobs together, in random histories, against a trivial model: every rank gets every round's sum, once.

No network and no clock: each pair of worker and aggregator has two queues, and what is delivered next is chance.
"""

from collections import deque
from functools import partial

import hypothesis
import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from psum.aggregator._actions import Action, Deliver, Report, ReturnCredit, Sum
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
        workers=st.integers(1, 3),
        aggregators=st.integers(1, 2),
        credit=st.sampled_from([1, 32, 1 << 20]),
        partition=st.sampled_from([16, 64, 1 << 20]),
    )
    def build(self, workers: int, aggregators: int, credit: int, partition: int) -> None:
        self.now = 0.0
        self.workers = workers
        addresses = [f"aggregator{i}:1" for i in range(aggregators)]
        self.jobs = []
        for index in range(aggregators):
            hellos = [
                pb.Hello(job="model", rank=r, num_workers=workers, aggregators=addresses, aggregator_index=index)
                for r in range(workers)
            ]
            self.jobs.append(Job(hellos[0], worker_timeout=30, round_timeout=600))
            for hello in hellos:
                assert self.jobs[-1].join(hello, "peer", 0.0) == ([], None)
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

    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        """A worker's next message enters the queue to an aggregator."""
        self.send_one(*data.draw(st.sampled_from(sorted(self.requests))))

    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        """A message arrives at an aggregator."""
        self.arrive_one(*data.draw(st.sampled_from(sorted(self.requests))))

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """A message arrives at a worker."""
        self.answer_one(*data.draw(st.sampled_from(sorted(self.responses))))

    @rule(data=st.data())
    def finish_sum(self, data: st.DataObject) -> None:
        """Some sum is made."""
        if self.sums:
            self.finish_one(data.draw(st.integers(0, len(self.sums) - 1)))

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

    def send_one(self, rank: int, aggregator: int) -> bool:
        message = self.sessions[rank].next_message(aggregator)
        if message is not None:
            self.requests[rank, aggregator].append(message)
        return message is not None

    def arrive_one(self, rank: int, aggregator: int) -> bool:
        queue, job = self.requests[rank, aggregator], self.jobs[aggregator]
        if not queue:
            return False
        request, payload = decode(pb.ExchangeRequest, queue.popleft())
        for key in request.declare.keys:
            self.perform(aggregator, job.declare(rank, key, self.now))
        for entry, piece in zip(request.push.shards, split(payload, request.push.shards), strict=True):
            self.perform(aggregator, job.contribute(rank, entry, piece, self.now))
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
                case Report(fault, _):
                    raise AssertionError(fault)

    def respond(self, aggregator: int, rank: int, message: pb.ExchangeResponse, payload: bytes) -> None:
        self.responses[rank, aggregator].append(encode(message, payload))


TestFleet = Fleet.TestCase
TestFleet.settings = hypothesis.settings(max_examples=150, stateful_step_count=60, deadline=None)
