"""Fuzzes the client's session with valid and invalid messages from aggregators."""

import dataclasses
import math
from collections import Counter, deque
from collections.abc import Sequence
from random import Random
from unittest import mock

from google.protobuf.message import DecodeError

from psum.client import ElementType, Operation, PsumError, Ticket
from psum.client.core import key_rounds, send_window
from psum.client.core.recorder import Recorder
from psum.client.core.session import Session
from psum.client.observe import trace
from psum.planes import InlineWorker
from psum.planes.direct import DirectWorker
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, decode, encode, following_sizes, to_columns, to_rows
from psum.wire.errors import ProtocolError
from tests.fuzz.columns import pieces_of
from tests.fuzz.following import moved_out
from tests.fuzz.harness import ViolationError, error_signature
from tests.fuzz.mutation import Mutator
from tests.fuzz.streams import report, take_finished

_Place = tuple[int, int, int, int]  # aggregator, key's id, shard, round


@dataclasses.dataclass(slots=True)
class StartedOperation:
    """A started operation and its outcomes.

    Attributes:
        ticket: The client's ticket.
        value: The contribution.
        target: Memory that receives the result.
        outcomes: Reported outcomes, None for success. There must be exactly one in the end.
    """

    ticket: Ticket
    value: bytes
    target: bytearray
    outcomes: list[PsumError | None]


class FakeAggregator:
    """An aggregator that keeps to the protocol and answers with random sums."""

    def __init__(self, random: Random) -> None:
        self.waiting: deque[tuple[pb.ExchangeResponse, bytes]] = deque()
        """Messages to send, each with its payload."""
        self.recent: list[pb.ExchangeResponse] = []
        """The last messages that were sent, set by the caller."""
        self._random = random
        self._keys: dict[int, pb.Key] = {}
        self._answered: list[ShardRound] = []

    @property
    def passed_over(self) -> list[ShardRound]:
        """Shards that the session has its result of, or does not know, with the lengths of their results."""
        unknown = [row._replace(id=row.id ^ 1) for row in self._answered[:1]]
        return [*self._answered, *unknown]

    def receive(self, data: bytes, following: Sequence[memoryview] = ()) -> None:
        """Receive a message of the session, which must be valid whatever the session was sent.

        Args:
            data: The message.
            following: The payloads that follow it.

        Raises:
            ViolationError: It is not.
        """
        message = pb.ExchangeRequest.FromString(data)
        announced = [row.outside_size for row in to_rows(message.push.shards) if row.outside_size]
        if announced != (sizes := list(map(len, following))):
            raise ViolationError(f"the session announces payloads of {announced} bytes, and {sizes} follow: {message}")
        match message.WhichOneof("kind"):
            case "declare":
                self._keys.update((key.id, key) for key in message.declare.keys)
            case "push" | "pull" as kind:
                entries = to_rows(getattr(message, kind).shards)
                if sum(entry.length for entry in entries) != len(message.payload):
                    raise ViolationError(f"the session sends lengths that do not add up: {message}")
                self._answer(entries, kind)
            case "restore":
                for entry in to_rows(message.restore.shards):
                    if entry.shard not in [shard.index for shard in self._keys[entry.id].shards]:
                        raise ViolationError(f"the session gives a sum to an aggregator that does not own it: {entry}")
            case "abort" | "synced":
                pass
            case kind:
                raise ViolationError(f"the session sends {kind}")

    def send_unsolicited(self) -> None:
        """Queue a message that does not answer a request."""
        random = self._random
        entries = random.choices(self._answered, k=random.choice((1, 2))) if self._answered else []
        fault = pb.Fault(code=pb.FAULT_CODE_ABORTED, text="no", id=random.choice([*self._keys, 5]), ranks=[1])
        message = random.choice(
            (
                pb.ExchangeResponse(want=pb.Want(shards=to_columns(entries))),
                pb.ExchangeResponse(want=pb.Want(shards=to_columns(entries))),
                pb.ExchangeResponse(taken=pb.Taken(shards=to_columns(entries))),
                pb.ExchangeResponse(sync=pb.Sync(number=random.randrange(3))),
                pb.ExchangeResponse(drain=pb.Drain(grace_seconds=1, open=to_columns(entries))),
                pb.ExchangeResponse(fault=fault),
            )
        )
        self.waiting.append((message, b""))

    def _answer(self, entries: list[ShardRound], kind: str) -> None:
        random = self._random
        results = []
        for entry in entries:
            key = self._keys.get(entry.id)
            if key is None:
                raise ViolationError(f"the session sends a key that it has not declared: {entry}")
            if kind == "pull":
                [elements] = [shard.elements for shard in key.shards if shard.index == entry.shard]
                entry = entry._replace(length=elements * ElementType(key.type).itemsize)
            elif key.operation == pb.OPERATION_BROADCAST:
                entry = entry._replace(length=0, outside_size=0)
            else:
                entry = entry._replace(length=entry.length + entry.outside_size, outside_size=0)
            results.append(entry)
        if random.random() < 0.2:
            self.waiting.append((pb.ExchangeResponse(taken=pb.Taken(shards=to_columns(results))), b""))
        if timed := [entry for entry in results if entry.timed]:
            timings = [
                pb.Timing(
                    id=entry.id,
                    shard=entry.shard,
                    round=entry.round,
                    last_rank=random.choice((0, 1, 1 << 31)),
                    waiting_seconds=random.choice((0.0, 0.01, 1e300, -1.0, math.inf, math.nan)),
                    summing_seconds=random.choice((0.0, 0.01, 1e300, -1.0, math.inf, math.nan)),
                )
                for entry in timed
            ]
            self.waiting.append((pb.ExchangeResponse(timings=pb.Timings(timings=timings)), b""))
        while results:
            count = random.randint(1, len(results))
            batch, results = results[:count], results[count:]
            payload = random.randbytes(sum(entry.length for entry in batch))
            self.waiting.append((pb.ExchangeResponse(result=pb.Result(shards=to_columns(batch))), payload))
            self._answered = (self._answered + batch)[-20:]


class SessionTarget:
    """A session whose aggregators send invalid messages."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()

    async def start(self) -> None:
        """Do nothing: each input has its own session."""

    async def feed(self, random: Random) -> None:
        """Run one session and mutate some of the messages to it."""
        with (
            mock.patch.object(send_window, "LARGE_PAYLOAD_BYTES", 32),
            mock.patch.object(key_rounds, "LARGE_PAYLOAD_BYTES", 32),
        ):
            SessionRun(random, self.outcomes).run()

    async def settle(self) -> None:
        """Do nothing."""

    async def stop(self) -> None:
        """Do nothing."""


class SessionRun:
    """One session from its first operation to its end.

    Args:
        random: Generator of all decisions.
        outcomes: Counters to update.
    """

    def __init__(self, random: Random, outcomes: Counter[str]) -> None:
        self._random = random
        self._outcomes = outcomes
        self._aggregators = random.choice((1, 1, 2))
        self._submitted: list[Ticket] = []
        self._recorder = Recorder(0, 1000) if random.random() < 0.5 else None
        self._session = Session(
            [f"a:{i}" for i in range(self._aggregators)],
            (),
            rank=random.randrange(2),
            partition_bytes=random.choice((16, 64, 1 << 20)),
            credit_bytes=random.choice((1, 100, 1 << 20)),
            keep_sums=random.random() < 0.8,
            hand_over=self._submitted.append,
            recorder=self._recorder,
        )
        self._fake_aggregators = [FakeAggregator(random) for _ in range(self._aggregators)]
        self._direct = [False] * self._aggregators
        """Whether payloads follow their messages on the present stream, by aggregator."""
        for aggregator in range(self._aggregators):
            self._open_stream(aggregator)
        self._started: list[StartedOperation] = []
        self._sent_results: dict[_Place, set[bytes]] = {}
        """Payloads of valid results sent to the session."""
        self._now = 0.0

    def run(self) -> None:
        """Run the session.

        Raises:
            ViolationError: The session violated a rule.
        """
        random, session = self._random, self._session
        for _ in range(random.choice((5, 15, 40))):
            aggregator = random.randrange(self._aggregators)
            match random.choices(range(7), (4, 6, 8, 2, 0.3, 0.2, 0.1))[0]:
                case 0:
                    self._start()
                case 1:
                    self._send(aggregator)
                case 2:
                    self._receive(aggregator, mutated=random.random() < 0.2)
                case 3:
                    self._fake_aggregators[aggregator].send_unsolicited()
                case 4:
                    self._fake_aggregators[aggregator].waiting.clear()
                    self._open_stream(aggregator)
                    session.reconnected(aggregator)
                case 5:
                    session.expire(random.choice((0.5, 5.0)), self._now)
                case 6:
                    self._now += 1
            self._settle()
        session.expire(0.0, self._now + 1)
        self._settle()
        for started in self._started:
            self._check(started)

    def _start(self) -> None:
        random = self._random
        name, elements, kind = random.choice(
            (("a", 1, ElementType.UINT8), ("b", 9, ElementType.INT32), ("c", 500, ElementType.FLOAT16))
        )
        operation = random.choice(tuple(Operation))
        try:
            ticket = self._session.reserve(0, name, (elements,), kind, operation, random.randrange(3))
        except PsumError:
            return
        value = random.randbytes(elements * kind.itemsize)
        started = StartedOperation(ticket, value, bytearray(value), [])
        view = memoryview(started.target)
        if random.random() < 0.03:
            ticket.abort("fuzzed")
        else:
            pulls = operation is Operation.BROADCAST and self._session.rank > 0
            ticket.start(None if pulls else view, view, started.outcomes.append)
            self._started.append(started)
        self._session.submit(self._submitted.pop(), self._now)

    def _send(self, aggregator: int) -> None:
        data = self._session.next_message(aggregator)
        if data is not None:
            self._fake_aggregators[aggregator].receive(data, self._session.following(aggregator))

    def _receive(self, aggregator: int, *, mutated: bool) -> None:
        random, fake = self._random, self._fake_aggregators[aggregator]
        if not fake.waiting:
            return
        if random.random() < 0.1:
            fake.waiting.rotate(1)
        message, payload = fake.waiting[0] if random.random() < 0.1 else fake.waiting.popleft()
        following: list[bytes] = []
        if self._direct[aggregator]:
            others = fake.passed_over if random.random() < 0.5 else []
            passed_over = random.sample(others, min(len(others), random.randrange(3)))
            message, payload, following = moved_out(random, message, payload, passed_over)
        fake.recent = [*fake.recent[-8:], message]
        mutator = Mutator(random, fake.recent)
        data = mutator.mutate(message, payload) if mutated else encode(message, payload)
        self._record(aggregator, data, following)
        try:
            self._handle(aggregator, data, following)
        except ProtocolError as error:
            self._outcomes[f"session: {error_signature(str(error)) if len(self._outcomes) < 60 else 'refused'}"] += 1
            # The client does the same.
            self._session.fail(error)
        else:
            self._outcomes["session: taken"] += 1
        if not mutated and self._session.failure is not None and not isinstance(self._session.failure, PsumError):
            raise ViolationError(f"the session failed with {self._session.failure!r}")

    def _open_stream(self, aggregator: int) -> None:
        """Draw whether payloads follow their messages from now on."""
        self._direct[aggregator] = self._random.random() < 0.5
        self._session.use_plane(aggregator, DirectWorker() if self._direct[aggregator] else InlineWorker())

    def _handle(self, aggregator: int, data: bytes, following: Sequence[bytes]) -> None:
        """Hand a message to the session, with the payloads that the client would have received for it."""
        message, payload = decode(pb.ExchangeResponse, data)
        if self._direct[aggregator] and following_sizes(message.result.shards) != list(map(len, following)):
            raise ProtocolError("other payloads follow than were announced")
        self._session.handle(aggregator, message, payload, map(memoryview, following), self._now)

    def _settle(self) -> None:
        report(take_finished(self._session))
        self._session.check()
        if self._recorder is not None:
            for one in trace.slices(self._recorder):
                if not (math.isfinite(one.start) and math.isfinite(one.end)):
                    raise ViolationError(f"a timeline has {one}")

    def _record(self, aggregator: int, data: bytes, following: Sequence[bytes]) -> None:
        """Record the results in a message, parsed by protobuf and not by psum."""
        try:
            message = pb.ExchangeResponse.FromString(data)
        except DecodeError:
            return
        for where, piece in pieces_of(message.result.shards, message.payload, following):
            self._sent_results.setdefault((aggregator, *where), set()).add(piece)

    def _check(self, started: StartedOperation) -> None:
        """Check that an operation ended once, and that its result came from the right aggregators."""
        if len(started.outcomes) != 1:
            raise ViolationError(f"{started.ticket!r} ended {len(started.outcomes)} times: {started.outcomes}")
        [error] = started.outcomes
        self._outcomes[f"operation: {'done' if error is None else type(error).__name__}"] += 1
        if error is not None:
            return
        key = started.ticket.key
        own = key.operation is Operation.BROADCAST and self._session.rank == 0
        for shard in key.shards:
            sent = self._sent_results.get((shard.aggregator, key.id, shard.index, started.ticket.round), set())
            if own:
                fits = started.target == started.value and b"" in sent
            else:
                fits = bytes(started.target[shard.start : shard.stop]) in sent
            if not fits:
                raise ViolationError(
                    f"{started.ticket!r} shard {shard.index} has a result that no aggregator sent for it"
                )
