"""A worker may stand for several ranks. Here a hand-written one stands for ranks 0 and 1, beside psum's clients."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

import minimal_client
from psum import client as psum
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, to_columns, to_rows
from psum.wire.errors import FaultError
from tests.fuzz.conversations import Tensor
from tests.polling import wait_until

RANKS = [0, 1]
NUM_WORKERS = 4


class Relay(minimal_client.Stream):
    """Stands for some ranks on one stream.

    Args:
        address: The only aggregator's address.
        resuming: Whether it comes back.
        ranks: The ranks.
    """

    def __init__(self, address: str, *, resuming: bool = False, ranks: list[int] = RANKS) -> None:
        hello = pb.Hello(
            protocol_version=1,
            job="default",
            rank=ranks[0],
            ranks=ranks,
            num_workers=NUM_WORKERS,
            incarnation=77,
            partition_bytes=2 << 20,
            aggregators=[address],
            placement=1,
            worker=f"relay on h0 for {ranks}",
            resuming=resuming,
        )
        super().__init__(address, hello)

    def declare(self, tensor: Tensor, round: int = 0) -> None:
        """Declares a key."""
        self.send(declare=pb.Declare(keys=[tensor.declaration(round)]))

    def push(self, tensor: Tensor, values: Any, round: int = 0) -> None:
        """Contributes the sum of its ranks, or the value of a broadcast."""
        rows = [ShardRound(tensor.id, shard.index, round, length=shard.size) for shard in tensor.shards]
        self.send(values.tobytes(), push=pb.Push(shards=to_columns(rows)))

    def sum(self, tensor: Tensor) -> bytes:
        """The result of a round, when all its shards have come."""
        pieces: dict[int, bytes] = {}
        while len(pieces) < len(tensor.shards):
            answer, start = self.receive("result"), 0
            for row in to_rows(answer.result.shards):
                pieces[row.shard] = answer.payload[start : start + row.length]
                start += row.length
        return b"".join(pieces[index] for index in range(len(pieces)))

    def lack(self, tensor: Tensor, ranks: list[int]) -> None:
        """Says for which of its ranks round 0 waits."""
        rows = [ShardRound(tensor.id, shard.index) for shard in tensor.shards]
        self.send(lacking=pb.Lacking(shards=to_columns(rows), ranks=[pb.Ranks(ranks=ranks)] * len(rows)))

    def receive(self, wanted: str) -> pb.ExchangeResponse:
        """The next message of a kind."""
        for response in self.responses:
            match response.WhichOneof("kind"):
                case "fault":
                    raise FaultError.from_message(response.fault)
                case kind if kind == wanted:
                    return response  # type: ignore[no-any-return]
        raise AssertionError("the stream has ended")

    def leave(self) -> None:
        """Says goodbye for all its ranks, and waits for the farewell."""
        self.send(goodbye=pb.Goodbye())
        self.receive("farewell")
        self.requests.put(None)
        self.channel.close()


def tensor(name: str, elements: int, operation: psum.Operation = psum.Operation.SUM) -> Tensor:
    return Tensor(name, elements, psum.ElementType.FLOAT32, operation, 2 << 20)


def values(rank: int, elements: int, round: int = 0) -> Any:
    """The values of a rank. Their sum depends on the order."""
    return np.random.default_rng([rank, elements, round]).standard_normal(elements).astype(np.float32)


def expected(elements: int, round: int = 0) -> bytes:
    """The sum of all ranks, with that of the relay's group first."""
    one, two, three, four = (values(rank, elements, round) for rank in range(NUM_WORKERS))
    return ((one + two) + three + four).tobytes()  # type: ignore[no-any-return]


def partial(elements: int, round: int = 0) -> Any:
    """What the relay contributes."""
    return values(0, elements, round) + values(1, elements, round)


class Job:
    """An aggregator, and the workers of ranks 2 and 3.

    Args:
        make_fleet: Starts an aggregator.
        settings: The aggregator's settings.

    Attributes:
        fleet: The aggregator.
        address: Its address.
    """

    def __init__(self, make_fleet: Callable[..., Any], settings: dict[str, Any]) -> None:
        self.fleet = make_fleet(**settings)
        [self.address] = self.fleet.addresses
        self.clients = [self.fleet.worker(rank, NUM_WORKERS) for rank in (2, 3)]
        self._stores = [client.store() for client in self.clients]

    def push(self, name: str, elements: int, round: int = 0) -> list[tuple["Future[None]", Any]]:
        """Both workers begin a push_pull. Returns the future and the array of each."""
        arrays = [values(client.rank, elements, round) for client in self.clients]
        pairs = zip(self._stores, arrays, strict=True)
        return [(store.push_pull_async(name, array), array) for store, array in pairs]

    def pull(self, name: str, elements: int) -> list[tuple["Future[None]", Any]]:
        """Both workers begin a broadcast. Returns the future and the array of each."""
        arrays = [np.full(elements, np.nan, np.float32) for _ in self.clients]
        pairs = zip(self._stores, arrays, strict=True)
        return [(store.broadcast_async(name, array), array) for store, array in pairs]

    def error(self, name: str) -> psum.FaultError:
        """The error of a push_pull, which both workers get."""
        one, two = [future.exception(10) for future, _ in self.push(name, 3)]
        assert isinstance(one, psum.FaultError)
        assert str(one) == str(two)
        return one


@pytest.fixture
def make_job(make_fleet: Callable[..., Any]) -> Iterator[Callable[..., Job]]:
    """Starts an aggregator with the given settings, and the workers of ranks 2 and 3."""
    jobs: list[Job] = []

    def make(**settings: Any) -> Job:
        jobs.append(Job(make_fleet, settings))
        return jobs[0]

    yield make
    for job in jobs:
        for client in job.clients:
            client.close()


@pytest.mark.parametrize("elements", [3, 530_000], ids=["small", "large"])
def test_all_ranks_get_the_same_bits(make_job: Callable[..., Job], elements: int) -> None:
    """In each round, and in a broadcast whose root the relay stands for. All leave in good order."""
    job = make_job()
    relay = Relay(job.address)
    weights, start = tensor("w", elements), tensor("b", elements, psum.Operation.BROADCAST)
    relay.declare(weights)
    relay.declare(start)
    for round in range(2):
        started = job.push("w", elements, round)
        relay.push(weights, partial(elements, round), round)
        assert relay.sum(weights) == expected(elements, round)
        for future, array in started:
            future.result(10)
            assert array.tobytes() == expected(elements, round)
    started = job.pull("b", elements)
    relay.push(start, values(0, elements))
    assert relay.sum(start) == b""
    for future, array in started:
        future.result(10)
        assert array.tobytes() == values(0, elements).tobytes()
    [status] = psum.fetch_status(job.address).jobs
    assert [(w.rank, list(w.ranks)) for w in status.workers] == [(0, RANKS), (2, []), (3, [])]
    relay.leave()
    for client in job.clients:
        client.close()
    [ended] = psum.fetch_status(job.address).ended
    assert (list(ended.joined), ended.failure) == ([0, 1, 2, 3], "")


@pytest.mark.parametrize("restart", [False, True], ids=["cut", "restart"])
def test_it_comes_back(make_job: Callable[..., Job], restart: bool) -> None:
    """After its stream broke, or after the aggregator was started again. A sum that it pushed twice counts once."""
    job = make_job()
    relay, weights = Relay(job.address), tensor("w", 3)
    relay.declare(weights)
    started = job.push("w", 3)
    relay.push(weights, partial(3))
    assert relay.sum(weights) == expected(3)
    for future, _ in started:
        future.result(10)
    relay.push(weights, partial(3, 1), 1)
    relay.receive("taken")
    if restart:
        job.fleet.restart()
    else:
        relay.channel.close()
    relay = Relay(job.address, resuming=True)
    relay.declare(weights, 1)
    relay.push(weights, partial(3, 1), 1)
    started = job.push("w", 3, 1)
    assert relay.sum(weights) == expected(3, 1)
    for future, array in started:
        future.result(10)
        assert array.tobytes() == expected(3, 1)
    relay.leave()


def test_errors_name_its_ranks(make_job: Callable[..., Job]) -> None:
    """A round that has waited too long names those for which the relay waits. If the relay vanishes, all are named."""
    job = make_job(round_timeout=0.5, worker_timeout=0.5)
    relay, slow = Relay(job.address), tensor("slow", 3)
    relay.declare(slow)
    relay.lack(slow, [1])
    error = job.error("slow")
    assert (type(error), error.ranks) == (psum.RoundTimeoutError, (1,))
    assert "for rank 1 (relay on h0 for [0, 1], last heard" in str(error)
    relay.channel.close()
    # A round that it has begun to wait for earlier could time out first.
    wait_until(lambda: not psum.fetch_status(job.address).jobs[0].workers[0].connected)
    error = job.error("w")
    assert (type(error), error.ranks) == (psum.WorkerLostError, (0, 1))
    assert "ranks 0-1 of job 'default', relay on h0 for [0, 1] (" in str(error)


def test_some_of_its_ranks_leave(make_job: Callable[..., Job]) -> None:
    """What needs them fails at once. The relay stays, and leaves with the others later."""
    job = make_job()
    relay, weights = Relay(job.address), tensor("w", 3)
    relay.declare(weights)
    started = job.push("w", 3)
    relay.push(weights, partial(3))
    relay.send(goodbye=pb.Goodbye(ranks=[1]))
    assert relay.sum(weights) == expected(3)
    for future, _ in started:
        future.result(10)
    error = job.error("v")
    assert (type(error), error.ranks) == (psum.WorkerLostError, (1,))
    assert "rank 1 (relay on h0 for [0, 1]) has left job 'default' without contributing to key 'v' round 0" in str(
        error
    )
    with pytest.raises(FaultError, match="has left job"):
        relay.receive("farewell")
    relay.leave()
    for client in job.clients:
        client.close()


def test_why_it_cannot_contribute_reaches_all(make_job: Callable[..., Job]) -> None:
    """The fault of its group, with its kind and ranks."""
    job = make_job()
    relay, weights = Relay(job.address), tensor("w", 3)
    relay.declare(weights)
    fault = psum.AbortedError("rank 1 has run out of memory", ranks=[1])
    relay.send(abort=pb.Abort(id=weights.id, fault=fault.to_message()))
    error = job.error("w")
    assert (type(error), str(error), error.ranks) == (psum.AbortedError, str(fault), (1,))
    with pytest.raises(FaultError, match="rank 1 has run out of memory"):
        relay.receive("farewell")
    relay.leave()


def test_a_rank_has_a_worker_or_a_relay(make_job: Callable[..., Job]) -> None:
    """Of two that claim a rank, the second one hears who has it, and that a relay stands for several."""
    job = make_job()
    with pytest.raises(psum.TakenError, match=r"rank 2 of job 'default' is taken by .* for ranks 1-2\. Either .*RELAY"):
        Relay(job.address, ranks=[1, 2])
    relay = Relay(job.address)
    with pytest.raises(psum.TakenError, match=r"ranks 0-1 of job 'default' are taken by relay on h0 .* for rank 1\."):
        job.fleet.worker(1, NUM_WORKERS, rank_timeout=0.1)
    relay.leave()
