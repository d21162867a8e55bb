"""Results that are taken together lead to what they lead to one after the other."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from psum.client import ElementType, Operation, Ticket
from psum.client.core.running_operations import RunningOperations
from psum.client.core.session import Session
from psum.planes.direct import DirectWorker
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, decode, encode, to_columns, to_rows
from psum.wire.errors import ProtocolError, PsumError

#: Elements of each key. The last one has several shards.
SIZES = {"a": 1, "b": 3, "c": 4, "d": 40}
_PARTITION_BYTES = 64


class Worker:
    """A session with one aggregator, without I/O, and all that its operations did.

    Args:
        together: Whether results may be taken together.
    """

    def __init__(self, *, together: bool) -> None:
        self.now = 1.0
        handed_over: list[Ticket] = []
        self._handed_over = handed_over
        self.session = Session(
            ["aggregator:1"],
            (),
            rank=0,
            partition_bytes=_PARTITION_BYTES,
            credit_bytes=256,
            hand_over=handed_over.append,
        )
        if not together:
            # The way that results take while operations are recorded.
            self.session._operations.__class__ = _Plain
        self.outs: dict[str, list[np.ndarray[tuple[int], np.dtype[np.int32]]]] = {name: [] for name in SIZES}
        self.sent: list[ShardRound] = []

    def push_pull(self, name: str, operation: Operation, value: int) -> None:
        """Starts an operation on a key."""
        size = SIZES[name]
        ticket = self.session.reserve(0, name, (size,), ElementType.INT32, operation, value % 3)
        out = np.full(size, -1, np.int32)
        self.outs[name].append(out)
        ticket.start(np.full(size, value, np.int32), out, lambda error: None)
        self.session.submit(self._handed_over.pop(), self.now)

    def send(self) -> list[bytes]:
        """Sends what may be sent; returns the messages."""
        messages = []
        while (data := self.session.next_message(0)) is not None:
            messages.append(data)
            request, _ = decode(pb.ExchangeRequest, data)
            self.sent += to_rows(request.push.shards)
        return messages

    def receive(self, data: bytes) -> str:
        """Takes a message; returns what was wrong with it."""
        self.now += 0.5
        try:
            self.session.receive(0, data, self.now)
        except (ProtocolError, PsumError) as error:
            return str(error)
        return ""

    def state(self) -> object:
        """All that later messages depend on, and what the program sees."""
        session = self.session
        window = session._windows[0]
        finished = [(str(ticket), error) for ticket, error in session.finished]
        counters = session.counters.operations
        return (
            {name: [out.tolist() for out in outs] for name, outs in self.outs.items()},
            finished,
            [str(ticket) for ticket in session.running],
            sorted(window.outstanding),
            window.scheduler.under_way_bytes,
            {
                rounds.key.name: (rounds.round, rounds.next_rounds, {i: bytes(s) for i, s in rounds.sums.items()})
                for rounds in session._operations.rounds.values()
            },
            [(c.received_bytes, c.sent_bytes) for c in counters.values()],
            [(c.exchange.buckets(), c.total.buckets(), c.queue.buckets()) for c in counters.values()],
        )


class _Plain(RunningOperations):
    """Operations whose results take the plain way."""

    completes_plainly = False


@dataclasses.dataclass
class Push:
    """An operation on a key."""

    name: str
    operation: Operation
    value: int


@dataclasses.dataclass
class Results:
    """A message with the results of contributions that were sent, by their places from the end of what was sent."""

    places: list[int]
    shift: int
    cut: bool


def steps(seed: int) -> Iterator[Push | Results | str]:
    """A history, most of which is ordinary."""
    random = np.random.default_rng(seed)
    for _ in range(150):
        match random.integers(8):
            case 0 | 1 | 2:
                operation = Operation.BROADCAST if random.random() < 0.15 else Operation.SUM
                yield Push(str(random.choice(sorted(SIZES))), operation, int(random.integers(100)))
            case 3 | 4:
                yield "send"
            case 5 | 6:
                places = random.integers(1, 12, random.integers(1, 7)).tolist()
                yield Results(places, int(random.random() < 0.05), bool(random.random() < 0.05))
            case _:
                yield "taken"


@pytest.mark.parametrize("seed", range(20))
def test_what_is_taken_together_leads_to_the_same(seed: int) -> None:
    """Also with duplicates, results nobody waits for, wrong sizes, broadcasts, and keys of several shards."""
    plain, quick = Worker(together=False), Worker(together=True)
    for step in steps(seed):
        match step:
            case Push(name, operation, value):
                for worker in (plain, quick):
                    worker.push_pull(name, operation, value)
            case Results(places, shift, cut) if plain.sent:
                rows = [plain.sent[-place % len(plain.sent)] for place in places]
                rows = [row._replace(round=row.round + shift) for row in rows]
                lengths = [row.length - (4 if cut and row.length else 0) for row in rows]
                rows = [row._replace(length=length) for row, length in zip(rows, lengths, strict=True)]
                payload = np.arange(sum(lengths) // 4, dtype=np.int32).tobytes()
                data = encode(pb.ExchangeResponse(result=pb.Result(shards=to_columns(rows))), payload)
                assert plain.receive(data) == quick.receive(data)
            case "taken" if plain.sent:
                data = encode(pb.ExchangeResponse(taken=pb.Taken(shards=to_columns(plain.sent[-2:]))))
                assert plain.receive(data) == quick.receive(data)
            case "send":
                assert plain.send() == quick.send()
        assert plain.state() == quick.state()
    assert len(plain.session.finished) > 5


def test_a_payload_of_another_length_changes_nothing() -> None:
    """The message is refused as a whole."""
    worker = Worker(together=True)
    worker.push_pull("a", Operation.SUM, 1)
    worker.send()
    before = worker.state()
    data = encode(pb.ExchangeResponse(result=pb.Result(shards=to_columns(worker.sent))), bytes(8))
    assert "a payload of 8 bytes for shards with a total of 4 bytes" in worker.receive(data)
    assert worker.state() == before


def test_a_payload_that_follows_for_nobody_is_not_taken_for_another_sum() -> None:
    """After a broken connection, a message may have the sum of one shard again, and then one that is waited for."""
    worker = Worker(together=True)
    worker.session.use_plane(0, DirectWorker())
    worker.push_pull("d", Operation.SUM, 1)
    worker.send()
    # Large sums follow their message, and so may small ones.
    first, second = (row._replace(length=0, outside_size=row.length) for row in worker.sent[:2])
    assert [(row.shard, row.outside_size) for row in (first, second)] == [(0, _PARTITION_BYTES), (1, _PARTITION_BYTES)]
    elements = _PARTITION_BYTES // 4
    sums = [np.full(elements, value, np.int32) for value in (5, 6)]

    def receive(*shards: ShardRound) -> None:
        result = pb.ExchangeResponse(result=pb.Result(shards=to_columns(shards)))
        following = [sums[row.shard].data.cast("B") for row in shards]
        worker.session.handle(0, result, memoryview(b""), following, 2.0)

    receive(first)
    receive(first, second)
    assert worker.outs["d"][0][: 2 * elements].tolist() == elements * [5] + elements * [6]


@pytest.mark.parametrize("together", [False, True])
def test_a_sum_that_is_said_to_be_in_two_places_changes_nothing(together: bool) -> None:
    """Only a faulty aggregator sends it. The sum that follows must not be taken for that of the next shard."""
    worker = Worker(together=together)
    worker.session.use_plane(0, DirectWorker())
    worker.push_pull("a", Operation.SUM, 1)
    worker.push_pull("b", Operation.SUM, 1)
    worker.send()
    both, other = sorted((row._replace(priority=0) for row in worker.sent), key=lambda row: row.length)
    rows = [both._replace(outside_size=4), other._replace(length=0, outside_size=other.length)]
    before = worker.state()
    result = pb.ExchangeResponse(result=pb.Result(shards=to_columns(rows)))
    following = [memoryview(bytes([value] * row.outside_size)) for value, row in enumerate(rows, 5)]
    with pytest.raises(ProtocolError, match="has 4 bytes in the message and 4 outside of it"):
        worker.session.handle(0, result, memoryview(bytes(4)), following, 2.0)
    assert worker.state() == before
