"""Conversations: valid sequences of messages from a job's workers to an aggregator, and mutations of them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Final

from psum.client import ElementType, Operation
from psum.client.core.placement import Placement, Shard, key_id
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, encode, to_columns
from psum.wire.errors import AbortedError
from tests.fuzz.mutation import Mutator

ADDRESSES: Final = ("fuzzed:1",)

#: Sizes in elements. They cover shards that share a message or not, keys of one or several shards, and sums computed at
#: once or in a thread.
_SIZES: Final = (1, 2, 3, 5, 17, 64, 300, 10_000)
_INTEGER_TYPES: Final = (ElementType.INT32, ElementType.UINT8, ElementType.INT64, ElementType.INT8)


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A key that all ranks use in the same way."""

    name: str
    elements: int
    element_type: ElementType
    operation: Operation
    partition_bytes: int

    @property
    def id(self) -> int:
        """The key's id on the wire."""
        return key_id(0, self.name, pb.Operation.ValueType(self.operation))

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.elements * self.element_type.itemsize

    @property
    def shards(self) -> tuple[Shard, ...]:
        """Its shards, all on one aggregator."""
        return Placement(self.partition_bytes, (1,)).shards(0, self.elements, self.element_type.itemsize)

    def value(self, rank: int, round: int) -> bytes:
        """Return a rank's contribution to a round."""
        return Random(f"{self.name} {rank} {round}").randbytes(self.nbytes)

    def declaration(self, round: int) -> pb.Key:
        """Return the declaration of a rank that is at this round."""
        size = self.element_type.itemsize
        return pb.Key(
            id=self.id,
            name=self.name,
            elements=self.elements,
            type=self.element_type.wire,
            operation=pb.Operation.ValueType(self.operation),
            shape=(self.elements,),
            shards=[pb.Shard(index=s.index, elements=s.size // size, round=round) for s in self.shards],
            label=f"parameter {self.name}",
        )


@dataclasses.dataclass(slots=True)
class Step:
    """One event on a rank's stream. It opens the stream if necessary.

    Attributes:
        stream: The rank.
        message: The message to send, or None.
        payload: The message's payload.
        data: If set, these bytes are sent instead of the message.
        end: How the stream ends after the message: "ended" in order, "cut", or "" for not at all.
        seconds: Time that passes before the message.
    """

    stream: int
    message: pb.ExchangeRequest | None = None
    payload: bytes = b""
    data: bytes | None = None
    end: str = ""
    seconds: float = 0.0

    def encoded(self) -> bytes | None:
        """Return the bytes to send, or None."""
        if self.data is not None or self.message is None:
            return self.data
        return encode(self.message, self.payload)

    def __str__(self) -> str:
        what = self.end or (f"{self.seconds} s pass" if self.seconds else "")
        if self.data is not None:
            what = self.data.hex() if len(self.data) < 400 else f"{self.data[:400].hex()}… ({len(self.data)} bytes)"
        elif self.message is not None:
            what = f"{' '.join(str(self.message).split())[:400]} + {len(self.payload)} bytes"
        return f"stream {self.stream}: {what}"


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """A job and the behaviour of its ranks.

    Attributes:
        job: The job's name.
        num_workers: Number of ranks.
        partition_bytes: Size of a shard.
        tensors: The job's keys.
        first_round: The first round. If it is above 0, the ranks resume after a restart of the aggregator.
        rounds: Number of rounds.
        members: The ranks that each of those stands for who open a stream; by default each rank for itself.
    """

    job: str
    num_workers: int
    partition_bytes: int
    tensors: tuple[Tensor, ...]
    first_round: int
    rounds: int
    members: tuple[tuple[int, ...], ...] = ()

    @property
    def firsts(self) -> list[int]:
        """The first rank of each member."""
        return [ranks[0] for ranks in self.members] or list(range(self.num_workers))

    @classmethod
    def make(cls, random: Random, job: str, *, order_independent: bool = False) -> "Conversation":
        """Draw a random conversation.

        With `order_independent`, it has several ranks, and its sums do not depend on the order of contributions.
        """
        partition = random.choice((16, 64, 64, 1024, 1 << 20, 1 << 20))
        types = _INTEGER_TYPES if order_independent else tuple(ElementType)
        tensors = []
        for name in random.sample("abcd", random.choice((1, 1, 2, 3))):
            kind, elements = random.choice(types), random.choice(_SIZES)
            if elements * kind.itemsize > 40 * partition:
                elements = max(1, 3 * partition // kind.itemsize)
            operation = random.choice((Operation.SUM, Operation.SUM, Operation.BROADCAST))
            tensors.append(Tensor(name, elements, kind, operation, partition))
        members = random.choice((2, 2, 3)) if order_independent else random.choice((1, 2, 2, 3))
        num_workers = members + random.choice((0, 0, 1, 3))
        return cls(
            job,
            num_workers,
            partition,
            tuple(tensors),
            0 if order_independent else random.choice((0, 0, 0, 1, 7)),
            random.choice((1, 1, 2, 3)),
            divided(random, num_workers, members),
        )

    def hello(self, rank: int) -> pb.Hello:
        """Return the hello message of a rank, or of the member whose first rank it is."""
        ranks = next((ranks for ranks in self.members if ranks[0] == rank), (rank,))
        return pb.Hello(
            protocol_version=1,
            job=self.job,
            rank=rank,
            ranks=ranks if len(ranks) > 1 else (),
            num_workers=self.num_workers,
            incarnation=1000 + rank,
            partition_bytes=self.partition_bytes,
            aggregators=ADDRESSES,
            planes=[pb.PLANE_INLINE],
            worker=f"fuzzed pid {rank}",
            age_seconds=1.0,
            resuming=self.first_round > 0,
        )

    def steps(self, random: Random, ranks: Sequence[int]) -> list[Step]:
        """Return the steps of these ranks, in a random valid order."""
        ahead = {rank: random.randrange(2) if self.first_round else 0 for rank in ranks}
        if all(ahead.values()):
            ahead = dict.fromkeys(ranks, 0)
        steps = []
        for rank in ranks:
            steps.append(Step(rank, pb.ExchangeRequest(hello=self.hello(rank))))
        for rank in ranks:
            keys = [tensor.declaration(self.first_round + ahead[rank]) for tensor in self.tensors]
            steps.append(Step(rank, pb.ExchangeRequest(declare=pb.Declare(keys=keys))))
        for round in range(self.first_round, self.first_round + self.rounds):
            turns = [(rank, tensor) for rank in ranks for tensor in self.tensors]
            random.shuffle(turns)
            for rank, tensor in turns:
                if random.random() < 0.2:
                    steps += self._lack(random, rank, tensor, round)
                if round < self.first_round + ahead[rank]:
                    steps += self._restore(rank, tensor, round)
                else:
                    steps += self._contribute(random, rank, tensor, round)
            if random.random() < 0.2:
                steps.append(Step(random.choice(ranks), seconds=random.choice((0.02, 1.0))))
        for rank in random.sample(ranks, len(ranks)):
            stands_for = self.hello(rank).ranks
            if stands_for and random.random() < 0.5:
                some = sorted(random.sample(stands_for, random.randint(1, len(stands_for))))
                steps.append(Step(rank, pb.ExchangeRequest(goodbye=pb.Goodbye(ranks=some))))
            match random.randrange(5):
                case 0:
                    steps.append(Step(rank, end="cut"))
                case 1:
                    steps.append(Step(rank, end="ended"))
                case 2:
                    abort = pb.Abort(id=self.tensors[0].id, round=self.first_round + self.rounds, text="no gradient")
                    if stands_for:
                        abort.fault.CopyFrom(AbortedError("rank 1 has no gradient", ranks=[1]).to_message())
                    steps.append(Step(rank, pb.ExchangeRequest(abort=abort)))
                case _:
                    steps.append(Step(rank, pb.ExchangeRequest(goodbye=pb.Goodbye())))
                    steps += [
                        Step(r, pb.ExchangeRequest(synced=pb.Synced(number=rank)))
                        for r in ranks
                        if r != rank and random.random() < 0.5
                    ]
        return steps

    def _contribute(self, random: Random, rank: int, tensor: Tensor, round: int) -> Iterator[Step]:
        value = tensor.value(rank, round)
        pulls = tensor.operation is Operation.BROADCAST and rank > 0
        shards = list(tensor.shards)
        size = random.choice((1, len(shards)))
        timed = random.random() < 0.3
        for i in range(0, len(shards), size):
            batch = shards[i : i + size]
            entries = [
                ShardRound(
                    id=tensor.id,
                    shard=s.index,
                    round=round,
                    priority=-i,
                    length=0 if pulls else s.stop - s.start,
                    timed=timed,
                )
                for s in batch
            ]
            if pulls:
                yield Step(rank, pb.ExchangeRequest(pull=pb.Pull(shards=to_columns(entries))))
            else:
                payload = value[batch[0].start : batch[-1].stop]
                yield Step(rank, pb.ExchangeRequest(push=pb.Push(shards=to_columns(entries))), payload)

    def _lack(self, random: Random, rank: int, tensor: Tensor, round: int) -> Iterator[Step]:
        """Lets a relay say which of its ranks it waits for."""
        if stands_for := self.hello(rank).ranks:
            entries = [ShardRound(id=tensor.id, shard=s.index, round=round) for s in tensor.shards]
            lists = [pb.Ranks(ranks=random.sample(stands_for, random.randrange(len(stands_for) + 1))) for _ in entries]
            yield Step(rank, pb.ExchangeRequest(lacking=pb.Lacking(shards=to_columns(entries), ranks=lists)))

    def _restore(self, rank: int, tensor: Tensor, round: int) -> Iterator[Step]:
        for shard in tensor.shards:
            entry = ShardRound(id=tensor.id, shard=shard.index, round=round, length=shard.size)
            payload = tensor.value(99, round)[shard.start : shard.stop]
            yield Step(rank, pb.ExchangeRequest(restore=pb.Restore(shards=to_columns([entry]))), payload)


def divided(random: Random, num_workers: int, members: int) -> tuple[tuple[int, ...], ...]:
    """Divide ranks at random among members, of which each stands for one at least."""
    ranks = random.sample(range(num_workers), num_workers)
    groups = [[rank] for rank in ranks[:members]]
    for rank in ranks[members:]:
        random.choice(groups).append(rank)
    return tuple(sorted(tuple(sorted(group)) for group in groups))


def mutate_steps(random: Random, steps: list[Step], foreign_messages: Sequence[pb.ExchangeRequest]) -> None:
    """Insert one to five mistakes into a conversation.

    Args:
        random: Generator of all decisions.
        steps: The conversation's steps, changed in place.
        foreign_messages: Messages of other jobs, as material for mutations.
    """
    donors = [step.message for step in steps if step.message is not None] + list(foreign_messages)
    mutator = Mutator(random, donors)

    def change() -> None:
        step = random.choice(steps)
        if step.message is not None:
            step.data = mutator.mutate(step.message, step.payload)

    def misjoin() -> None:
        step = random.choice([step for step in steps if step.message is not None and step.message.HasField("hello")])
        assert step.message is not None
        step.data = misjoined(random, step.message.hello)

    def repeat() -> None:
        place = random.randrange(len(steps))
        steps.insert(random.choice((place, random.randrange(len(steps) + 1))), dataclasses.replace(steps[place]))

    def move() -> None:
        step = steps.pop(random.randrange(len(steps)))
        steps.insert(random.randrange(len(steps) + 1), step)

    def swap_stream() -> None:
        random.choice(steps).stream = random.choice(steps).stream

    def insert_foreign() -> None:
        message = random.choice(donors) if random.random() < 0.5 else mutator.random_message(donors[0].DESCRIPTOR)
        assert isinstance(message, pb.ExchangeRequest)
        payload = random.randbytes(random.choice((0, 0, 1, 64, 1000)))
        steps.insert(random.randrange(len(steps) + 1), Step(random.choice(steps).stream, message, payload))

    def stop() -> None:
        place = random.randrange(len(steps) + 1)
        steps.insert(place, Step(random.choice(steps).stream, end=random.choice(("cut", "ended"))))

    def wait() -> None:
        place = random.randrange(len(steps) + 1)
        steps.insert(place, Step(random.choice(steps).stream, seconds=random.choice((0.02, 1.0, 4.0, 7.0))))

    def drop() -> None:
        if len(steps) > 1:
            del steps[random.randrange(len(steps))]

    mistakes: tuple[Callable[[], None], ...] = (
        change,
        repeat,
        move,
        swap_stream,
        insert_foreign,
        stop,
        wait,
        drop,
    )
    # First, while the conversation has all its hellos.
    if random.random() < 0.15:
        misjoin()
    for _ in range(random.choice((1, 1, 2, 3, 5))):
        random.choices(mistakes, (8, 2, 2, 1, 2, 1, 1, 1))[0]()


def misjoined(random: Random, hello: pb.Hello) -> bytes:
    """Return a hello like this one that brings other ranks, or another size of the job or of its group."""
    changed = pb.Hello()
    changed.CopyFrom(hello)
    size = hello.num_workers
    further = b""
    match random.randrange(8):
        case 0:
            # Valid by itself. Other members may have the same ranks.
            changed.ranks[:] = sorted(random.sample(range(size), random.randint(1, size)))
            changed.rank = changed.ranks[0]
        case 1:
            changed.ranks[:] = random.choices(range(size + 1), k=random.randint(1, 2 * size))
        case 2:
            changed.ranks[:] = [*(hello.ranks or [hello.rank]), random.choice((size, 1 << 31, (1 << 32) - 1))]
        case 3:
            changed.ranks[:] = range(hello.rank, hello.rank + random.choice((1000, 100_000)))
            changed.num_workers = random.choice((size, (1 << 32) - 1))
        case 4:
            changed.rank = random.randrange(size + 1)
        case 5:
            changed.num_workers = random.choice((0, 1, max(0, size - 1), size + 1, 1 << 31, (1 << 32) - 1))
        case 6:
            # A negative number, as another language may encode it. A field that comes twice is merged.
            ranks = bytes((pb.Hello.RANKS_FIELD_NUMBER << 3, *b"\xff" * 9, 1))
            further = bytes((pb.ExchangeRequest.HELLO_FIELD_NUMBER << 3 | 2, len(ranks))) + ranks
        case _:
            changed.group_size = random.choice((1, 2, size, size + 1, (1 << 32) - 1))
    return encode(pb.ExchangeRequest(hello=changed)) + further


@functools.cache
def foreign_messages(job: str) -> tuple[pb.ExchangeRequest, ...]:
    """Return valid messages of another job's worker."""
    conversation = Conversation.make(Random(job), job)
    return tuple(s.message for s in conversation.steps(Random(job), conversation.firsts[:1]) if s.message is not None)
