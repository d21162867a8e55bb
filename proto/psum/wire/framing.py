"""Write and read messages with a payload without passing the payload through protobuf.

ExchangeRequest and ExchangeResponse both end in `bytes payload = 15`, with `bytes padding = 14` before it. On the wire
each of these fields is a tag, a length and the bytes. So a message is written as

    message without payload | padding field | payload's tag and length | payload

and read by walking over the few top-level fields before the payload. The output is what protobuf would write for the
same fields. The input may come from any protobuf implementation.

The padding makes the payload begin at a multiple of 16 bytes from the message's start. CPython also aligns the content
of a bytes object to 16 bytes, so a received payload can be summed in place.
"""

import ctypes
from typing import Any, Final, TypeVar

import numpy.typing as npt
from google.protobuf.message import DecodeError

from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ProtocolError

PAYLOAD_ALIGNMENT_BYTES: Final = 16

_PADDING_TAG: Final = 14 << 3 | 2
_PAYLOAD_TAG: Final = 15 << 3 | 2
_LENGTH_DELIMITED: Final = 2

#: The largest message without its payload. Parsed, it takes about 20 times as much memory. A Drain message for half a
#: million rounds is smaller.
MAX_HEADER_BYTES: Final = 16 << 20

# The most fields that are searched for the payload. A message has three: its kind, padding and payload. The loop is
# slow, and a hostile message could have millions of fields.
_MAX_FIELDS: Final = 16

# A bytes object's content begins after its header; __basicsize__ counts the closing NUL byte too.
_BYTES_HEADER: Final = bytes.__basicsize__ - 1
_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t]
_new_bytes.restype = ctypes.py_object

#: Contiguous memory.
Bytes = bytes | memoryview | npt.NDArray[Any]

Envelope = TypeVar("Envelope", pb.ExchangeRequest, pb.ExchangeResponse)


def encode(message: pb.ExchangeRequest | pb.ExchangeResponse, *payloads: Bytes, size: int | None = None) -> bytes:
    """Return the wire form of a message whose payload is the concatenation of buffers.

    Args:
        message: The message without payload.
        payloads: Contiguous buffers. Each is copied once, into the result.
        size: Their total size in bytes; None if they are byte buffers.
    """
    if size is None:
        size = sum(map(len, payloads))
    header = message.SerializeToString()
    # NumPy's stubs say only from Python 3.12 on that arrays are buffers.
    return b"".join((_lead(header, size), *payloads)) if size else header  # type: ignore[arg-type]


def allocate(message: pb.ExchangeRequest | pb.ExchangeResponse, size: int) -> tuple[bytes, memoryview]:
    """Return the wire form of a message with room for its payload, and a writable view of this room.

    A sum is computed directly into the view, without another copy. The view does not keep the bytes object alive: do
    not use it after the bytes object is released, and do not write to it after the bytes object is passed on.

    Args:
        message: The message without payload.
        size: The payload's size in bytes, above 0.
    """
    lead = _lead(message.SerializeToString(), size)
    # The C API allows filling a new bytes object before other code has seen it.
    whole: bytes = _new_bytes(None, len(lead) + size)
    address = id(whole) + _BYTES_HEADER
    ctypes.memmove(address, lead, len(lead))
    return whole, memoryview((ctypes.c_char * size).from_address(address + len(lead))).cast("B")


def decode(kind: type[Envelope], data: bytes | memoryview) -> tuple[Envelope, memoryview]:
    """Return a received message without its payload, and a view of the payload.

    Raises:
        ProtocolError: The bytes are not such a message.
    """
    try:
        found = _payload_range(data)
        header = len(data) if found is None else found[0]
        if header > MAX_HEADER_BYTES:
            raise ProtocolError(
                f"a message with {header} bytes before its payload, which must be the last field; expected at most"
                f" {MAX_HEADER_BYTES}"
            )
        if found is not None:
            field, start = found
            # FromString takes any buffer, though the stubs only know bytes.
            return kind.FromString(memoryview(data)[:field]), memoryview(data)[start:]  # type: ignore[arg-type]
        # Legal, but no known sender does this: fields after the payload, or two payloads.
        message = kind.FromString(data)  # type: ignore[arg-type]
    except DecodeError as error:
        raise ProtocolError(f"{len(data)} bytes are not a valid psum.v1.{kind.DESCRIPTOR.name}: {error}") from None
    payload = memoryview(message.payload)
    message.ClearField("payload")
    return message, payload


def _lead(header: bytes, size: int) -> bytes:
    """Return all bytes of a message before its payload of this size."""
    tail = bytes((_PAYLOAD_TAG,)) + _varint(size)
    padding = -(len(header) + 2 + len(tail)) % PAYLOAD_ALIGNMENT_BYTES
    return b"".join((header, bytes((_PADDING_TAG, padding)), bytes(padding), tail))


def _payload_range(data: bytes | memoryview) -> tuple[int, int] | None:
    """Return where the payload's field and the payload begin, or None if it is not the last of a few fields."""
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
    """Return the number at a position, and the position after it."""
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
