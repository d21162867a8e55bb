"""What an elastic job adds to a step, in the cores of two workers and an aggregator, joined without a network."""

import gc
import sys
from collections import deque
from collections.abc import Callable
from types import FrameType, SimpleNamespace
from typing import Any, Final, cast

import numpy as np
import pytest

from psum.aggregator.core.limits import Limits
from psum.aggregator.core.registry import Registry
from psum.aggregator.service.action_runner import ActionRunner
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.receiver import Receiver
from psum.aggregator.sums.pool import PriorityPool
from psum.client import Client, Elastic, ElasticState, ElementType, Settings, termination
from psum.client.core.session import Session
from psum.client.core.ticket import Ticket
from psum.client.elastic.link import Link
from psum.client.outstanding import OutstandingOperations
from psum.client.store import Store
from psum.v1 import aggregator_pb2 as pb
from psum.wire import decode

RANKS: Final = 2


class Worker:
    """A client without connections. Its thread does what is to be done when it is told to.

    Args:
        rank: The rank.
        elastic: Whether the job is elastic.
    """

    num_workers = RANKS
    waits_for_admission = False

    def __init__(self, rank: int, *, elastic: bool) -> None:
        self.rank, self.title, self.incarnation = rank, f"rank {rank}", rank + 1
        workers = Elastic(RANKS, RANKS) if elastic else None
        self.settings = Settings(aggregators=("one:1",), rank=rank, num_workers=RANKS, elastic=workers)
        self.session = Session(
            ["one:1"],
            (),
            rank=rank,
            num_workers=RANKS,
            elastic=elastic,
            partition_bytes=1 << 20,
            credit_bytes=1 << 20,
            hand_over=self._hand_over,
        )
        self.reserve, self.reserve_again = self.session.reserve, self.session.reserve_again
        thread: Any = SimpleNamespace(call=lambda _: None)
        self.outstanding = OutstandingOperations(self.session, thread, lambda: None)
        self.link = Link(self, self.settings, self.session, thread, lambda: None) if elastic else None
        self._upcoming: deque[Callable[[], None]] = deque()

    def start_with_next(self, start: Callable[[], None]) -> None:
        self._upcoming.append(start)

    def start_upcoming(self) -> None:
        while self._upcoming:
            self._upcoming.popleft()()

    def close(self, timeout: float = 5.0) -> None:
        raise NotImplementedError

    def _hand_over(self, ticket: Ticket) -> None:
        if self._upcoming:
            self.start_upcoming()
        self.outstanding.add(ticket)


class Joined:
    """Two workers and an aggregator.

    Args:
        keys: How many keys each step sums.
        elastic: Whether the job is elastic.
    """

    def __init__(self, keys: int, *, elastic: bool) -> None:
        self.sent_bytes = 0
        """The bytes of all messages so far."""
        self._connections = [WorkerConnection() for _ in range(RANKS)]
        pool = cast(PriorityPool, SimpleNamespace(at_once_bytes=1 << 40))
        runner = ActionRunner(pool, lambda _, rank: self._connections[rank])
        registry, self._receivers = Registry(Limits()), list[Receiver]()
        for rank, connection in enumerate(self._connections):
            hello = pb.Hello(protocol_version=1, job="j", rank=rank, num_workers=RANKS, incarnation=rank + 1)
            hello.partition_bytes = 1 << 20
            if elastic:
                hello.elastic.CopyFrom(pb.Elastic(min=RANKS, max=RANKS))
            job, _, refusal = registry.join(hello, "peer:1", 1.0)
            assert job is not None, refusal
            self._receivers.append(Receiver(job, rank, connection, runner, clock=lambda: 1.0, uncredited=lambda: None))
        self._workers = [Worker(rank, elastic=elastic) for rank in range(RANKS)]
        self._stores = [Store(cast(Client, worker), 0) for worker in self._workers]
        self._values = [[np.ones(64, np.float32) for _ in range(keys)] for _ in range(RANKS)]
        self._states = [ElasticState(cast(Client, worker)) for worker in self._workers] if elastic else []

    def step(self) -> None:
        """Sums each key once, as a training does."""
        futures = [
            store.push_pull_async(n, value, priority=-n, element_type=ElementType.FLOAT32)
            for store, values in zip(self._stores, self._values, strict=True)
            for n, value in enumerate(values)
        ]
        for worker, receiver in zip(self._workers, self._receivers, strict=True):
            worker.outstanding.empty_inbox()
            while (message := worker.session.next_message(0)) is not None:
                self.sent_bytes += len(message)
                with pytest.raises(StopIteration):
                    receiver.handle(message, None).send(None)
        for worker, connection in zip(self._workers, self._connections, strict=True):
            while connection.queue:
                message = connection.queue.get()
                self.sent_bytes += len(message)
                worker.session.handle(0, *decode(pb.ExchangeResponse, message), (), 1.0)
                worker.outstanding.report()
        for future in futures:
            assert future.done()
        for state in self._states:
            state.step()


def cost(keys: int, *, elastic: bool) -> tuple[int, int]:
    """How many calls of functions a step makes, and how many bytes its messages have."""
    joined = Joined(keys, elastic=elastic)
    for _ in range(3):
        joined.step()
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before, profiler = joined.sent_bytes, sys.getprofile()
    # A collection would run finalizers of what earlier tests left in cycles, which count as calls.
    gc.collect()
    gc.disable()
    sys.setprofile(count)
    try:
        joined.step()
    finally:
        sys.setprofile(profiler)
        gc.enable()
    return calls, joined.sent_bytes - before


def test_what_an_elastic_job_adds_does_not_grow_with_the_number_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one more sum, and the step boundary. So it is nothing for each operation, and for each row of a message."""
    monkeypatch.setattr(termination, "postpone", lambda *_: None)
    added = []
    for keys in (20, 80):
        (plain, plain_bytes), (elastic, elastic_bytes) = cost(keys, elastic=False), cost(keys, elastic=True)
        # Some numbers have more digits, and the padding differs.
        added.append((elastic - plain, elastic_bytes - plain_bytes))
        assert plain > 10 * keys
    (calls, size), (calls_of_more, size_of_more) = added
    assert 0 < calls == calls_of_more < 250
    assert 4 * 64 < size < 4 * 200
    assert abs(size - size_of_more) < 4 * 24
