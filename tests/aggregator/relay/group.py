"""A relay's group in an elastic job with hand-made owners, without I/O."""

from collections.abc import Sequence
from typing import Any, cast

from psum.aggregator.core.actions import ConnectUplinks
from psum.aggregator.relay.core.elastic_host_job import ElasticHostJob
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, decode, encode, split, to_columns, to_rows
from tests.aggregator.relay.pure import Peer, Process, hello, push

ELASTIC = pb.Elastic(min=1, max=8)


class Group:
    """A relay with a group of two ranks or more, and hand-made owners.

    Args:
        ranks: The ranks that come.
        size: The size of the group.
        owners: How many owners there are.
    """

    def __init__(self, ranks: Sequence[int] = (0, 1), size: int = 2, owners: int = 1) -> None:
        self.relay = Process(1)
        self.size = size
        self.owners = owners
        self.workers = {rank: self.join(rank) for rank in ranks}
        if len(ranks) == size:
            self.connect()

    def hello(self, rank: int, **change: Any) -> pb.Hello:
        return hello(rank, group=self.size, owners=self.owners, elastic=ELASTIC, **change)

    def join(self, rank: int, **change: Any) -> Peer:
        return self.relay.join(self.hello(rank, **change))

    def refusal(self, rank: int, **change: Any) -> Exception | None:
        """Why a worker is refused."""
        return self.relay.groups.join(self.hello(rank, **change), "peer", self.relay.now)[2]

    @property
    def job(self) -> ElasticHostJob:
        return cast(ElasticHostJob, self.relay.groups.jobs["night"])

    def connect(self) -> None:
        """The owners let the group in."""
        assert ConnectUplinks() in self.relay.told
        for owner in range(self.owners):
            self.job.uplink.let_in(owner)

    def sent(self, owner: int = 0) -> list[tuple[pb.ExchangeRequest, memoryview]]:
        """What an owner is sent, without what rounds wait for."""
        return [each for each in self._all_sent(owner) if not each[0].HasField("lacking")]

    def _all_sent(self, owner: int) -> list[tuple[pb.ExchangeRequest, memoryview]]:
        messages = []
        while (message := self.job.uplink.next_message(owner)) is not None:
            messages.append(decode(pb.ExchangeRequest, message))
        self.job.check()
        return messages

    def all_kinds(self, owner: int = 0) -> list[str]:
        """The kinds of all messages that an owner is sent."""
        return [str(message.WhichOneof("kind")) for message, _ in self._all_sent(owner)]

    def kinds(self, owner: int = 0) -> list[str]:
        return [str(message.WhichOneof("kind")) for message, _ in self.sent(owner)]

    def answer(self, owner: int = 0, payload: bytes = b"", **kind: Any) -> None:
        """An owner says something."""
        response = pb.ExchangeResponse(**kind)
        self.job.uplink.receive(owner, encode(response, payload) if payload else encode(response), self.relay.now)
        self.relay.runner.perform(self.job, self.job.heard(self.relay.now))
        self.job.check()

    def result(self, payload: bytes, round: int = 0, contributors: int = 0) -> None:
        row = ShardRound(7, 0, round, length=len(payload), contributors=contributors)
        self.answer(payload=payload, result=pb.Result(shards=to_columns([row])))

    def say(self, rank: int, payload: bytes = b"", **kind: Any) -> None:
        self.relay.say(self.workers[rank], payload=payload, **kind)

    def declare(self, declared: pb.Key, *ranks: int) -> None:
        for rank in ranks or self.workers:
            self.say(rank, declare=pb.Declare(keys=[declared]))

    def push(self, *ranks: int, round: int = 0) -> None:
        for rank in ranks:
            self.say(rank, **push(bytes([1 << rank] * 4), round=round))

    def lose(self, *ranks: int, seconds: float = 1.5) -> None:
        """The processes of some ranks end; their streams are closed."""
        for rank in ranks:
            self.end(rank)
        self.pass_time(seconds)

    def end(self, rank: int, *, closed: bool = True) -> None:
        """The stream of a rank ends that has taken part in the job."""
        self.job.workers[rank].contributed = True
        self.relay.runner.perform(self.job, self.job.lost(rank, self.relay.now, closed=closed))
        self.relay.connections.pop((id(self.job), rank), None)

    def pass_time(self, seconds: float, silent: Sequence[int] = ()) -> None:
        """Time passes, in which the connected workers send beats, except those that are silent."""
        for _ in range(round(seconds / 0.25)):
            if (job := self.relay.groups.jobs.get("night")) is None:
                break
            for rank, worker in job.workers.items():
                if worker.connected and rank not in silent:
                    worker.last_heard = self.relay.now + 0.25
            self.relay.tick(0.25)

    def restart(self, **change: Any) -> None:
        """The relay is killed. Nobody has come to its next process."""
        now = self.relay.now
        self.relay = Process(2)
        self.relay.now = now


def pushed(messages: Sequence[tuple[pb.ExchangeRequest, memoryview]]) -> list[tuple[int, bytes, int]]:
    """The contributions among some messages: round, value, and how many ranks it counts."""
    return [
        (row.round, bytes(piece), row.contributors)
        for message, payload in messages
        if message.HasField("push")
        for rows in [to_rows(message.push.shards)]
        for row, piece in zip(rows, split(payload, rows), strict=True)
    ]


def losses(messages: Sequence[tuple[Any, memoryview]]) -> list[int]:
    """The ranks whose losses some messages tell."""
    return [loss.rank for message, _ in messages if message.HasField("losses") for loss in message.losses.losses]
