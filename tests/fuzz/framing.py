"""Fuzzes decode and split: whatever comes, they raise ProtocolError or read what protobuf reads."""

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
from tests.fuzz.cases import ViolationError
from tests.fuzz.columns import lengths_of, well_formed
from tests.fuzz.mutation import Mutator

_KINDS = (pb.ExchangeRequest, pb.ExchangeResponse)
_WITH_SHARDS = ("push", "restore", "result")


class FramingTarget:
    """The functions that both sides take messages apart with."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()

    async def start(self) -> None:
        """Nothing is to be done."""

    async def feed(self, random: Random) -> None:
        """A message of any kind with mistakes in it."""
        kind = random.choice(_KINDS)
        mutator = Mutator(random, ())
        message = mutator.random_message(kind.DESCRIPTOR)
        assert isinstance(message, _KINDS)
        payload = random.randbytes(random.choice((0, 1, 15, 16, 100, 5000)))
        if random.random() < 0.5:
            # One whose lengths add up.
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
        """Nothing is left."""

    async def stop(self) -> None:
        """Nothing is to be done."""


def check(kind: Any, data: bytes) -> str:
    """What decode and split make of the bytes.

    Raises:
        ViolationError: It is not what protobuf makes of them.
    """
    try:
        expected = kind.FromString(data)
    except DecodeError:
        expected = None
    try:
        message, payload = decode(kind, data)
    except ProtocolError:
        if expected is not None:
            raise ViolationError(f"{data.hex()} is a message, and was refused") from None
        return "no message"
    if expected is None:
        raise ViolationError(f"{data.hex()} is no message, and was taken as {message}")
    if expected.payload != payload:
        raise ViolationError(f"the payload of {data.hex()} was read as {bytes(payload)!r}")
    expected.ClearField("payload")
    # Compared as bytes: a NaN in the message differs from itself.
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
            raise ViolationError(f"the columns in {data.hex()} fit, and were refused") from None
        return "columns that do not fit"
    if not well_formed(shards):
        raise ViolationError(f"the columns in {data.hex()} do not fit, and were read as {rows}")
    lengths = lengths_of(shards)
    fits = sum(lengths) == len(payload)
    try:
        pieces = split(payload, rows)
    except ProtocolError:
        if fits:
            raise ViolationError(f"the lengths in {data.hex()} add up, and were refused") from None
        return "lengths that do not add up"
    if not fits or b"".join(pieces) != payload or [len(p) for p in pieces] != lengths:
        raise ViolationError(f"the payload of {data.hex()} was cut into {[bytes(p) for p in pieces]}")
    return "a message with shards"
