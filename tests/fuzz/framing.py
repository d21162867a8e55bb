"""Fuzzes decode and split: for any bytes they must raise ProtocolError, or agree with protobuf."""

from collections import Counter
from random import Random
from typing import Any

from google.protobuf.message import DecodeError

from psum.v1 import aggregator_pb2 as pb
from psum.wire import (
    ShardRound,
    decode,
    encode,
    split,
    to_columns,
    to_rows,
)
from psum.wire.errors import ProtocolError
from tests.fuzz.columns import lengths_of, well_formed
from tests.fuzz.harness import ViolationError
from tests.fuzz.mutation import Mutator

_KINDS = (pb.ExchangeRequest, pb.ExchangeResponse)
_WITH_SHARDS = ("push", "restore", "result")


class FramingTarget:
    """The functions that parse messages on both sides."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()

    async def start(self) -> None:
        """Do nothing."""

    async def feed(self, random: Random) -> None:
        """Feed a random message with mistakes."""
        kind = random.choice(_KINDS)
        mutator = Mutator(random, ())
        message = mutator.random_message(kind.DESCRIPTOR)
        assert isinstance(message, _KINDS)
        payload = random.randbytes(random.choice((0, 1, 15, 16, 100, 5000)))
        if random.random() < 0.5:
            # A message whose lengths add up.
            message = kind()
            what = message.result if isinstance(message, pb.ExchangeResponse) else message.push
            rest, rows = len(payload), []
            while rest:
                rows.append(ShardRound(random.randrange(9), length=(size := random.randint(1, rest))))
                rest -= size
            what.shards.CopyFrom(to_columns([*rows, ShardRound(1)]))
        data = encode(message, payload) if random.random() < 0.2 else mutator.mutate(message, payload)
        self.outcomes[f"framing: {check(kind, data)}"] += 1

    async def settle(self) -> None:
        """Do nothing: the functions have no state."""

    async def stop(self) -> None:
        """Do nothing."""


def check(kind: Any, data: bytes) -> str:
    """Parse bytes with decode and split, and compare the results with protobuf's. Return a description of the outcome.

    Raises:
        ViolationError: The results differ.
    """
    try:
        expected = kind.FromString(data)
    except DecodeError:
        expected = None
    try:
        message, payload = decode(kind, data)
    except ProtocolError:
        if expected is not None:
            raise ViolationError(f"{data.hex()} is a valid message, but was refused") from None
        return "no message"
    if expected is None:
        raise ViolationError(f"{data.hex()} is not a valid message, but was read as {message}")
    if expected.payload != payload:
        raise ViolationError(f"the payload of {data.hex()} was read as {bytes(payload)!r}")
    expected.ClearField("payload")
    # Compare the encodings: a NaN in the message would not equal itself.
    if expected.SerializeToString(deterministic=True) != message.SerializeToString(deterministic=True):
        raise ViolationError(f"{data.hex()} was read as {message}")
    which = message.WhichOneof("kind")
    if which not in _WITH_SHARDS:
        return "a message"
    shards = getattr(message, which).shards
    try:
        rows = to_rows(shards)
    except ProtocolError:
        if well_formed(shards):
            raise ViolationError(f"the columns in {data.hex()} are valid, but were refused") from None
        return "columns that do not fit"
    if not well_formed(shards):
        raise ViolationError(f"the columns in {data.hex()} are not valid, but were read as {rows}")
    lengths = lengths_of(shards)
    fits = sum(lengths) == len(payload)
    try:
        pieces = split(payload, rows)
    except ProtocolError:
        if fits:
            raise ViolationError(f"the lengths in {data.hex()} add up, but were refused") from None
        return "lengths that do not add up"
    if not fits or b"".join(pieces) != payload or [len(p) for p in pieces] != lengths:
        raise ViolationError(f"the payload of {data.hex()} was split into {[bytes(p) for p in pieces]}")
    return "a message with shards"
