"""Measures what a small key costs an aggregator without a network: `.venv/bin/python -m tests.bench.small_keys`.

Messages of workers go into the code that takes them apart, and the messages for the workers come out of their queues.
In each step rank 0 sends all its contributions first, and the others follow later by a time that the clock says: within
the time for which credit is held, or after it. Only the aggregator's part is counted. To compare two versions, run them
in turn, with PYTHONPATH.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Final, cast

from psum.aggregator.core.limits import Limits
from psum.aggregator.core.registry import Registry
from psum.aggregator.server import collect_rarely
from psum.aggregator.service.action_runner import ActionRunner
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.receiver import Receiver
from psum.aggregator.sums.pool import PriorityPool
from psum.v1 import aggregator_pb2 as pb
from psum.wire import BATCH_BYTES, ElementType, ShardRound, encode, to_columns

#: How often the jobs are asked for credit that is due, in seconds.
_TICK: Final = 0.01


class Aggregator:
    """One job of one aggregator.

    Args:
        ranks: The number of workers.
        keys: The number of keys.
        elements: The number of elements of each, in float32.
    """

    def __init__(self, ranks: int, keys: int, elements: int) -> None:
        self.now = 1.0
        self.seconds = 0.0
        """The processor time that the aggregator's part has taken."""
        self._connections = [WorkerConnection() for _ in range(ranks)]
        pool = cast(PriorityPool, SimpleNamespace(at_once_bytes=1 << 40))
        self._runner = ActionRunner(pool, lambda _, rank: self._connections[rank])
        registry = Registry(Limits())
        self._receivers: list[Receiver] = []
        for rank, connection in enumerate(self._connections):
            hello = pb.Hello(protocol_version=1, job="j", rank=rank, num_workers=ranks, incarnation=rank + 1)
            hello.partition_bytes = 1 << 20
            job, _, refusal = registry.join(hello, "peer:1", self.now)
            assert job is not None, refusal
            self.job = job
            self._receivers.append(
                Receiver(job, rank, connection, self._runner, clock=lambda: self.now, uncredited=lambda: None)
            )
        self._ids = [(number + 1) * 0x9E3779B97F4A7C15 % (1 << 63) for number in range(keys)]
        self._round = 0
        self._payload = bytes(elements * ElementType.FLOAT32.itemsize)
        for rank in range(ranks):
            for number, key_id in enumerate(self._ids):
                key = pb.Key(id=key_id, name=f"k{number}", elements=elements, type=ElementType.FLOAT32.wire)
                key.operation, key.shape[:] = pb.OPERATION_SUM, [elements]
                key.shards.add(index=0, elements=elements)
                self._handle(rank, encode(pb.ExchangeRequest(declare=pb.Declare(keys=[key]))))
        self.seconds = 0.0

    def step(self, lag: float, message_keys: list[int]) -> None:
        """Sums each key once.

        Args:
            lag: How many seconds of the job's clock each rank is behind the one before it.
            message_keys: How many keys each rank has in a message.
        """
        for rank in range(len(self._connections)):
            messages = [self._message(begin, count) for begin, count in self._parts(message_keys[rank])]
            until = self.now + (lag if rank else 0)
            while self.now < until:
                self.now = min(until, self.now + _TICK)
                self._tick()
            for message in messages:
                self.now += 1e-4
                self._handle(rank, message)
        begin = time.process_time()
        for connection in self._connections:
            while connection.queue:
                connection.queue.get()
        self.seconds += time.process_time() - begin
        self._round += 1
        assert self.job.rounds.completed == self._round * len(self._ids)

    def _parts(self, count: int) -> list[tuple[int, int]]:
        return [(begin, count) for begin in range(0, len(self._ids), count)]

    def _message(self, begin: int, count: int) -> bytes:
        size = len(self._payload)
        rows = [ShardRound(i, 0, self._round, 0, size) for i in self._ids[begin : begin + count]]
        return encode(pb.ExchangeRequest(push=pb.Push(shards=to_columns(rows))), self._payload * len(rows))

    def _tick(self) -> None:
        begin = time.process_time()
        self._runner.perform(self.job, self.job.tick(self.now))
        self.seconds += time.process_time() - begin

    def _handle(self, rank: int, message: bytes) -> None:
        coroutine = self._receivers[rank].handle(message, None)
        begin = time.process_time()
        try:
            coroutine.send(None)
        except StopIteration:
            self.seconds += time.process_time() - begin
            return
        raise AssertionError("it waited")


def measure(arguments: argparse.Namespace, lag: float, *, alike: bool) -> tuple[float, float]:
    """The median and the least processor time in microseconds for a key of all workers."""
    aggregator = Aggregator(arguments.workers, arguments.keys, arguments.elements)
    usual = BATCH_BYTES // (arguments.elements * ElementType.FLOAT32.itemsize)
    message_keys = [usual - (0 if alike else 7 * rank) for rank in range(arguments.workers)]
    times = []
    for _ in range(arguments.steps):
        before = aggregator.seconds
        aggregator.step(lag, message_keys)
        times.append((aggregator.seconds - before) / arguments.keys * 1e6)
    return statistics.median(times[2:]), min(times[2:])


def main(words: Sequence[str] | None = None) -> None:
    """Measure with the options of the command line, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--elements", type=int, default=256, help="of each key, in float32")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--lags", type=float, nargs="+", default=[0.0, 0.03, 0.3], help="in seconds")
    arguments = parser.parse_args(words)
    print("| ranks behind each other by | messages | µs for a key, median | least |\n|---|---|---|---|")
    for lag in arguments.lags:
        for alike in (True, False):
            median, least = measure(arguments, lag, alike=alike)
            print(
                f"| {lag * 1000:.0f} ms | {'alike' if alike else 'differ'} | {median:.2f} | {least:.2f} |", flush=True
            )


if __name__ == "__main__":
    collect_rarely()
    main()
