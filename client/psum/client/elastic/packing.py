"""A program's state as a stream of bytes: pickled by entry, with the memory of arrays as it lies there.

The stream has a table, the pickles, and the buffers that pickle leaves out. Each buffer begins at a multiple of 64
bytes, so arrays are aligned where they arrive.
"""

import pickle
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from psum.wire.errors import InvalidError

#: Arrays that arrive begin at multiples of this.
_ALIGNMENT: Final = 64

_LENGTH: Final = struct.Struct("<Q")


class Packed(NamedTuple):
    """A stream.

    Attributes:
        pieces: Its bytes, in order. Those of arrays are the arrays' own memory.
        nbytes: How many bytes it has.
    """

    pieces: Sequence[memoryview]
    nbytes: int


def pack(entries: Mapping[str, object]) -> Packed:
    """Packs a state.

    Args:
        entries: The entries by their names. Buffers that support pickle's protocol 5, such as NumPy's arrays, are not
            copied. They must not change while the stream is read.

    Raises:
        InvalidError: An entry cannot be pickled. The text names it.
    """
    table: list[tuple[str, list[int]]] = []
    pieces: list[memoryview] = []
    for name, value in entries.items():
        buffers: list[pickle.PickleBuffer] = []
        try:
            # Anything may be raised by what an object does to be pickled.
            data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
            parts = [memoryview(data), *(buffer.raw() for buffer in buffers)]
        except Exception as error:
            raise InvalidError(
                f"entry {name!r} of the elastic state cannot be pickled, so no process can join:"
                f" {type(error).__name__}: {error}"
            ) from error
        table.append((name, [part.nbytes for part in parts]))
        pieces += parts
    index = pickle.dumps(table, protocol=5)
    padded: list[memoryview] = []
    for piece in (memoryview(_LENGTH.pack(len(index)) + index), *pieces):
        padded.append(piece)
        if rest := -piece.nbytes % _ALIGNMENT:
            padded.append(memoryview(bytes(rest)))
    return Packed(padded, sum(piece.nbytes for piece in padded))


def unpack(stream: memoryview) -> dict[str, Any]:
    """The state in a stream. Arrays stay in the stream's memory, and can be written to if it can.

    Raises:
        InvalidError: An entry cannot be unpickled here. The text names it.
    """
    (length,) = _LENGTH.unpack_from(stream)
    table: list[tuple[str, list[int]]] = pickle.loads(stream[_LENGTH.size : _LENGTH.size + length])
    begin = _aligned(_LENGTH.size + length)
    entries = {}
    for name, sizes in table:
        parts = []
        for size in sizes:
            parts.append(stream[begin : begin + size])
            begin += _aligned(size)
        try:
            entries[name] = pickle.loads(parts[0], buffers=parts[1:])
        except Exception as error:
            raise InvalidError(
                f"entry {name!r} of the elastic state cannot be unpickled in this process: {type(error).__name__}:"
                f" {error}. A process that joins must run the same program as the others"
            ) from error
    return entries


def cut(pieces: Sequence[memoryview], sizes: Iterator[int]) -> Iterator[memoryview]:
    """Cuts a stream into chunks, without a copy where a chunk lies within one piece.

    Args:
        pieces: The stream's bytes, in order.
        sizes: The size of each chunk. They are taken as long as there are bytes. The last chunk is filled up with
            zeros.
    """
    rest = [piece.cast("B") if piece.nbytes else piece for piece in reversed(pieces) if piece.nbytes]
    while rest:
        size = next(sizes)
        if rest[-1].nbytes >= size:
            piece = rest.pop()
            yield piece[:size]
            if piece.nbytes > size:
                rest.append(piece[size:])
            continue
        chunk: npt.NDArray[np.uint8] = np.zeros(size, np.uint8)
        filled = 0
        while rest and filled < size:
            piece = rest.pop()
            part = min(piece.nbytes, size - filled)
            chunk[filled : filled + part] = piece[:part]
            filled += part
            if piece.nbytes > part:
                rest.append(piece[part:])
        yield chunk.data


def _aligned(size: int) -> int:
    return size + -size % _ALIGNMENT
