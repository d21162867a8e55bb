"""The framing is compatible with protobuf, and keeps the payload away from protobuf."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psum.v1 import aggregator_pb2 as pb
from psum.wire import (
    MAX_MESSAGE_BYTES,
    MAX_SHARDS_PER_PAYLOAD,
    PAYLOAD_ALIGNMENT_BYTES,
    ShardRound,
    allocate,
    decode,
    encode,
    split,
    to_columns,
    to_rows,
)
from psum.wire.errors import ProtocolError

entries = st.builds(
    ShardRound,
    id=st.integers(0, 2**64 - 1),
    shard=st.integers(0, 2**32 - 1),
    round=st.integers(0, 2**64 - 1),
    priority=st.integers(-(2**63), 2**63 - 1),
    length=st.integers(0, 2**40),
    offset=st.just(0),
    outside_size=st.just(0),
    contributors=st.integers(0, 2**32 - 1),
)
pushes = st.builds(
    lambda rows: pb.ExchangeRequest(push=pb.Push(shards=to_columns(rows))), st.lists(entries, max_size=20)
)
payloads = st.lists(st.binary(max_size=300), max_size=4)


@given(pushes, payloads)
def test_plain_protobuf_reads_what_is_encoded(message: pb.ExchangeRequest, pieces: list[bytes]) -> None:
    """The generated class parses an encoded message into the same fields and payload."""
    parsed = pb.ExchangeRequest.FromString(encode(message, *pieces))
    assert parsed.push == message.push
    assert parsed.payload == b"".join(pieces)


@given(pushes, payloads)
def test_what_plain_protobuf_writes_is_decoded(message: pb.ExchangeRequest, pieces: list[bytes]) -> None:
    """A message that the generated class serialised gives the same fields and payload."""
    whole = pb.ExchangeRequest(push=message.push, payload=b"".join(pieces))
    parsed, payload = decode(pb.ExchangeRequest, whole.SerializeToString())
    assert parsed == message
    assert payload == b"".join(pieces)


@given(pushes, payloads)
def test_encoding_and_decoding_gives_the_message_back(message: pb.ExchangeRequest, pieces: list[bytes]) -> None:
    """A decoded message has the fields and the payload that were encoded."""
    parsed, payload = decode(pb.ExchangeRequest, encode(message, *pieces))
    assert parsed.push == message.push
    assert payload == b"".join(pieces)


@given(pushes, st.integers(1, 1000))
def test_the_payload_is_aligned(message: pb.ExchangeRequest, size: int) -> None:
    """A payload begins at a multiple of 16 bytes in memory, so that NumPy can use it without a copy."""
    _, payload = decode(pb.ExchangeRequest, encode(message, bytes(size)))
    assert np.frombuffer(payload, np.uint8).ctypes.data % PAYLOAD_ALIGNMENT_BYTES == 0


def test_an_allocated_message_holds_what_is_written_into_its_payload() -> None:
    """The receiver reads the sum that was written in place."""
    entry = ShardRound(id=7, shard=1, round=2, length=8)
    message, payload = allocate(pb.ExchangeResponse(result=pb.Result(shards=to_columns([entry]))), 8)
    np.frombuffer(payload, np.float32)[:] = [1.5, -2.0]
    parsed = pb.ExchangeResponse.FromString(message)
    assert to_rows(parsed.result.shards) == [entry]
    assert np.frombuffer(parsed.payload, np.float32).tolist() == [1.5, -2.0]


def test_fields_in_another_order_are_understood() -> None:
    """A payload that precedes the other fields, or comes twice, is read as protobuf reads it."""
    push = pb.ExchangeRequest(push=pb.Push(shards=to_columns([ShardRound(id=1, length=2)]))).SerializeToString()
    first = pb.ExchangeRequest(payload=b"ab").SerializeToString()
    second = pb.ExchangeRequest(payload=b"cd").SerializeToString()
    parsed, payload = decode(pb.ExchangeRequest, first + push + second)
    assert parsed.push.shards.ids == [1]
    assert bytes(payload) == b"cd"
    assert decode(pb.ExchangeRequest, first + push)[1].tobytes() == b"ab"


def test_unknown_fields_are_passed_over() -> None:
    """Fields of a later version are ignored."""
    # The fields 90, with three bytes, and 91, an integer.
    unknown = bytes([0xD2, 0x05, 3]) + b"new" + bytes([0xD8, 0x05, 5])
    push = pb.ExchangeRequest(push=pb.Push(shards=to_columns([ShardRound(id=1, length=2)])), payload=b"ab")
    parsed, payload = decode(pb.ExchangeRequest, unknown + push.SerializeToString())
    assert parsed.push == push.push
    assert bytes(payload) == b"ab"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    """Bytes from the network raise only ProtocolError, and protobuf accepts everything that is accepted."""
    try:
        parsed, payload = decode(pb.ExchangeRequest, data)
    except ProtocolError:
        return
    assert pb.ExchangeRequest.FromString(data).payload == payload
    assert pb.ExchangeRequest.FromString(data).WhichOneof("kind") == parsed.WhichOneof("kind")


@given(pushes, st.binary(min_size=1, max_size=50), st.data())
def test_a_cut_message_is_a_protocol_error_or_shorter(
    message: pb.ExchangeRequest, payload: bytes, data: st.DataObject
) -> None:
    """A truncated message never gives the whole payload, and raises only ProtocolError."""
    whole = encode(message, payload)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        _, rest = decode(pb.ExchangeRequest, cut)
    except ProtocolError:
        return
    assert rest != payload


def _field(number: int, content: bytes) -> bytes:
    """Return a field of bytes as protobuf writes it, as a whole message."""
    return pb.ExchangeRequest(padding=content).SerializeToString().replace(b"\x72", bytes((number << 3 | 2,)), 1)


def _take_apart(data: bytes) -> None:
    message, payload = decode(pb.ExchangeRequest, data)
    split(payload, to_rows(message.push.shards, MAX_SHARDS_PER_PAYLOAD))


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(b"\x72\x00" * (MAX_MESSAGE_BYTES // 2), id="millions of fields"),
        pytest.param(_field(3, _field(1, _field(1, bytes(32 << 20)))), id="millions of shards"),
        pytest.param(_field(3, _field(1, _field(1, bytes(70_000 * 8)))), id="more shards than a payload has"),
    ],
)
def test_a_message_that_is_all_header_is_refused_at_once(hostile: bytes) -> None:
    """One message must not take minutes or gigabytes, because the reader serves others too."""
    begin = time.process_time()
    with pytest.raises(ProtocolError, match=r"before its payload|70000 shards"):
        _take_apart(hostile)
    assert time.process_time() - begin < 1.0
