"""Messages with their payload, written and read without passing the payload through protobuf.

ExchangeRequest and ExchangeResponse both end in `bytes payload = 15`, with `bytes padding = 14` before it. On the wire
that is a tag, a length and the bytes, so a message can be put together as

    the message without payload | padding field | payload's tag and length | payload

and taken apart by walking over the few top-level fields before the payload. What is written here is what protobuf
would write for the same fields, and what any protobuf implementation writes is read here.

The padding makes the payload begin at a multiple of 16 bytes from the message's start. CPython keeps the content of a
bytes object at a multiple of 16 too, hence a received payload can be summed in place.
"""

import ctypes
from typing import Final, TypeVar

from google.protobuf.message import DecodeError

from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ProtocolError

PAYLOAD_ALIGNMENT_BYTES: Final = 16

_PADDING_TAG: Final = 14 << 3 | 2
_PAYLOAD_TAG: Final = 15 << 3 | 2
_LENGTH_DELIMITED: Final = 2

#: The most that a message has besides its payload. What protobuf makes of it takes some 20 times as much memory; a
#: drain that names half a million rounds fits.
MAX_HEADER_BYTES: Final = 16 << 20

# Fields that are looked at for the payload: a message has a kind, a padding and a payload. Each takes a turn of a slow
# loop, of which a hostile message could ask for millions.
_MAX_FIELDS: Final = 16

# A bytes object's content begins after its header; __basicsize__ counts the closing NUL byte too.
_BYTES_HEADER: Final = bytes.__basicsize__ - 1
_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t]
_new_bytes.restype = ctypes.py_object

Envelope = TypeVar("Envelope", pb.ExchangeRequest, pb.ExchangeResponse)


def encode(message: pb.ExchangeRequest | pb.ExchangeResponse, *payloads: bytes | memoryview) -> bytes:
    """The wire form of a message whose payload is the given buffers, end to end.

    Args:
        message: The message with its payload unset.
        payloads: Contiguous byte buffers; each is copied once, into the result.
    """
    size = sum(map(len, payloads))
    header = message.SerializeToString()
    return b"".join((_lead(header, size), *payloads)) if size else header


def allocate(message: pb.ExchangeRequest | pb.ExchangeResponse, size: int) -> tuple[bytes, memoryview]:
    """The wire form of a message whose payload is yet to be written.

    The second value is a writable view of the payload's place within the first, so that a sum is computed right where
    it is sent from. The view must not be used after the bytes object was let go, nor written once it was handed on.

    Args:
        message: The message with its payload unset.
        size: The payload's size in bytes, above 0.
    """
    lead = _lead(message.SerializeToString(), size)
    # The C API allows to fill a new bytes object before anybody else has seen it.
    whole: bytes = _new_bytes(None, len(lead) + size)
    address = id(whole) + _BYTES_HEADER
    ctypes.memmove(address, lead, len(lead))
    return whole, memoryview((ctypes.c_char * size).from_address(address + len(lead))).cast("B")


def decode(kind: type[Envelope], data: bytes | memoryview) -> tuple[Envelope, memoryview]:
    """A received message without its payload, and a view of the payload.

    Raises:
        ProtocolError: The bytes are no such message.
    """
    try:
        place = _payload_place(data)
        header = len(data) if place is None else place[0]
        if header > MAX_HEADER_BYTES:
            raise ProtocolError(
                f"a message with {header} bytes besides its payload, which is to be the last field; expected at most"
                f" {MAX_HEADER_BYTES}"
            )
        if place is not None:
            field, start = place
            # FromString takes any buffer, though the stubs only know bytes.
            return kind.FromString(memoryview(data)[:field]), memoryview(data)[start:]  # type: ignore[arg-type]
        # Legal, though no sender is known that writes so: fields after the payload, or the payload twice.
        message = kind.FromString(data)  # type: ignore[arg-type]
    except DecodeError as error:
        raise ProtocolError(f"{len(data)} bytes are not a psum.v1.{kind.DESCRIPTOR.name}: {error}") from None
    payload = memoryview(message.payload)
    message.ClearField("payload")
    return message, payload


def _lead(header: bytes, size: int) -> bytes:
    """Everything of a message that precedes a payload of so many bytes."""
    tail = bytes((_PAYLOAD_TAG,)) + _varint(size)
    padding = -(len(header) + 2 + len(tail)) % PAYLOAD_ALIGNMENT_BYTES
    return b"".join((header, bytes((_PADDING_TAG, padding)), bytes(padding), tail))


def _payload_place(data: bytes | memoryview) -> tuple[int, int] | None:
    """Where the payload's field and the payload begin, None where it is not the last of a few fields."""
    position, end = 0, len(data)
    for _ in range(_MAX_FIELDS):
        if position >= end:
            return end, end
        tag = data[position]
        if tag & 0x87 != _LENGTH_DELIMITED:
            return None
        length, after = _read_varint(data, position + 1)
        if tag == _PAYLOAD_TAG:
            return (position, after) if after + length == end else None
        position = after + length
    return None


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """The number at the position and the position after it."""
    value = shift = 0
    while shift < 64:
        if position >= len(data):
            raise ProtocolError("a message ends within a field's length")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ProtocolError("a field's length is longer than 64 bits")
