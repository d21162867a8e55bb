"""A conforming worker in a job whose other workers break the protocol, and a check of its sums."""

import contextlib
import itertools

import numpy as np
from google.protobuf.message import DecodeError

from psum.client import Operation
from psum.v1 import aggregator_pb2 as pb
from tests.fuzz.columns import pieces_of
from tests.fuzz.conversations import Conversation, Tensor
from tests.fuzz.harness import ViolationError
from tests.fuzz.streams import Worker


class ConformingWorker:
    """A worker that keeps to the protocol in a job whose other workers do not.

    Args:
        conversation: The job's conversation.
        rank: The worker's rank.
    """

    def __init__(self, conversation: Conversation, rank: int) -> None:
        self.job = conversation.job
        self._conversation = conversation
        self._rank = rank
        hello = conversation.hello(rank)
        hello.incarnation = 1 << 60
        self.worker = Worker(hello)
        self._operations = [
            (
                round,
                tensor,
                *self.worker.begin(tensor.name, tensor.element_type, tensor.operation, self._value(tensor, round)),
            )
            for round in range(conversation.rounds)
            for tensor in conversation.tensors
        ]

    def check(self, sent: list[bytes], *, mutated: bool) -> None:
        """Check that each operation ended once, and that each sum fits the contributions to its round.

        Args:
            sent: All messages of the other workers.
            mutated: Whether the messages contain mistakes, so that operations may fail.

        Raises:
            ViolationError: A check failed.
        """
        pushed: dict[tuple[int, int, int], set[bytes]] = {}
        restored: dict[tuple[int, int, int], set[bytes]] = {}
        for data in sent:
            _collect(data, pushed, restored)
        # A mistake may make one member stand for the ranks of several.
        known = {tuple(self._conversation.hello(first).ranks) for first in self._conversation.firsts}
        others = len(self._conversation.firsts) - 1
        fewest = others if _claimed(sent) <= known else min(1, others)
        for round, tensor, ticket, value in self._operations:
            [error] = self.worker.outcomes[ticket]
            if error is not None:
                if not mutated:
                    raise ViolationError(f"{ticket!r} failed although no input was wrong: {error}")
                continue
            own = self._value(tensor, round)
            for shard in tensor.shards:
                shard_round = tensor.id, shard.index, round
                got = bytes(value[shard.start : shard.stop])
                if got in restored.get(shard_round, ()):
                    continue
                mine = bytes(own[shard.start : shard.stop])
                contributions = pushed.get(shard_round, set())
                if not any(got in self._possible(tensor, mine, contributions, n) for n in range(fewest, others + 1)):
                    raise ViolationError(
                        f"{ticket!r} shard {shard.index} is {got[:50]!r}, which does not fit any contributions"
                    )

    def _possible(self, tensor: Tensor, mine: bytes, others: set[bytes], number: int) -> set[bytes]:
        """Return the possible sums, given the contributions of the other members, and their number."""
        if tensor.operation is Operation.BROADCAST:
            return {mine} if self._rank == 0 else others
        dtype = tensor.element_type.numpy
        sums = set()
        fitting = [np.frombuffer(o, dtype) for o in others if len(o) == len(mine)]
        for terms in itertools.combinations_with_replacement(fitting, number):
            total = np.frombuffer(mine, dtype).copy()
            for term in terms:
                total += term
            sums.add(total.tobytes())
        return sums

    def _value(self, tensor: Tensor, round: int) -> bytearray:
        return bytearray(tensor.value(self._rank, round))


def _claimed(sent: list[bytes]) -> set[tuple[int, ...]]:
    """Return for which ranks the senders of messages say that they stand."""
    claimed = set()
    for data in sent:
        with contextlib.suppress(DecodeError):
            message = pb.ExchangeRequest.FromString(data)
            if message.WhichOneof("kind") == "hello":
                claimed.add(tuple(message.hello.ranks))
    return claimed


def _collect(
    data: bytes, pushed: dict[tuple[int, int, int], set[bytes]], restored: dict[tuple[int, int, int], set[bytes]]
) -> None:
    """Collect a message's contributions, parsed by protobuf and not by psum."""
    try:
        message = pb.ExchangeRequest.FromString(data)
    except DecodeError:
        return
    kind = message.WhichOneof("kind")
    if kind not in ("push", "restore"):
        return
    for where, piece in pieces_of(getattr(message, kind).shards, message.payload):
        (pushed if kind == "push" else restored).setdefault(where, set()).add(piece)
