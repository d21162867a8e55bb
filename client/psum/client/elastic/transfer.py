"""Gives a state from one process to another, through keys that only the two of them use.

First comes a header of fixed size, with the beginning of the stream. The rest follows in chunks, each a round of one of
a few keys in turn. A round ends when both sides have taken part, so no more is under way than these keys hold.
"""

import itertools
import json
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from psum.client.core.buffers import Memory
from psum.client.core.roll_call import Process
from psum.client.elastic.packing import Packed, cut
from psum.client.future import Outcome
from psum.wire.errors import InvalidError, PsumError, WorkerLostError

#: The header with the beginning of the stream. A small state needs nothing more.
_HEADER_BYTES: Final = 64 << 10

#: The most bytes of a chunk, and the least, if there are several.
_CHUNK_BYTES: Final = 8 << 20
_LEAST_CHUNK_BYTES: Final = 64 << 10

#: How many chunks are under way at once, each on a key of its own.
_KEYS: Final = 4

_LENGTH: Final = struct.Struct("<I")


class TransferLink(Protocol):
    """What a transfer needs of Link, which documents it."""

    def give(self, name: str, memory: Memory, giver: int, receiver: int, *, steers: bool = False) -> Outcome: ...

    def wait(self, predicate: Callable[[], bool]) -> None: ...

    def is_lost(self, rank: int) -> bool: ...


class Pair(NamedTuple):
    """The two sides of a transfer.

    Attributes:
        donor: The rank that gives its state.
        newcomer: The process that receives it.
    """

    donor: int
    newcomer: Process

    def name(self, part: str) -> str:
        """The name of one of the keys that only the two use."""
        return f"state of rank {self.donor} for rank {self.newcomer.rank} ({self.newcomer.incarnation:016x}), {part}"


def give(link: TransferLink, pair: Pair, packed: Packed, weights: Sequence[int]) -> bool:
    """Gives a state to a newcomer.

    Args:
        link: Connects this process with it.
        pair: Who takes part.
        packed: The state.
        weights: What the ranks have agreed on for the weights of aggregators.

    Returns:
        False if the newcomer was lost meanwhile.

    Raises:
        PsumError: The job has failed.
    """
    chunk = _chunk_bytes(packed.nbytes)
    header = _header({"bytes": packed.nbytes, "chunk": chunk, "keys": _KEYS, "weights": list(weights)})
    sizes = itertools.chain([_HEADER_BYTES - len(header)], itertools.repeat(chunk))
    chunks = cut(packed.pieces, sizes)
    first = np.frombuffer(header + next(chunks), np.uint8)
    return _carry(link, pair, first.data, chunks, _KEYS, pair.newcomer.rank)


def refuse(link: TransferLink, pair: Pair, reason: str) -> bool:
    """Tells a newcomer that it gets no state, and why. See `give`."""
    header = _header({"error": reason[: _HEADER_BYTES // 8]})
    first = np.frombuffer(header.ljust(_HEADER_BYTES, b"\0"), np.uint8)
    return _carry(link, pair, first.data, iter(()), 1, pair.newcomer.rank)


def receive(link: TransferLink, pair: Pair, knows_weights: Callable[[Sequence[int]], None]) -> memoryview | None:
    """Receives a state as a newcomer.

    Args:
        link: Connects this process with the donor.
        pair: Who takes part.
        knows_weights: Called with what the ranks have agreed on for the weights of aggregators, if they need to. Keys
            other than the first can be used only after that.

    Returns:
        The stream, in memory that belongs to the caller. None if the donor was lost before all of it had come.

    Raises:
        InvalidError: The donor could not give its state.
        PsumError: The job has failed.
    """
    first: npt.NDArray[np.uint8] = np.empty(_HEADER_BYTES, np.uint8)
    if not _carry(link, pair, first.data, iter(()), 1, pair.donor):
        return None
    (length,) = _LENGTH.unpack_from(first.data)
    header = json.loads(first[_LENGTH.size : _LENGTH.size + length].tobytes())
    if "error" in header:
        raise InvalidError(f"rank {pair.donor} could not give its state to this process: {header['error']}")
    if header["weights"]:
        knows_weights(header["weights"])
    begun = first[_LENGTH.size + length :]
    size, chunk, keys = header["bytes"], header["chunk"], header["keys"]
    count = max(0, -(-(size - begun.nbytes) // chunk))
    stream: npt.NDArray[np.uint8] = np.empty(begun.nbytes + count * chunk, np.uint8)
    stream[: begun.nbytes] = begun
    parts = (stream.data[begun.nbytes + i * chunk : begun.nbytes + (i + 1) * chunk] for i in range(count))
    if not _carry(link, pair, None, parts, keys, pair.donor):
        return None
    return stream.data[:size]


def _carry(
    link: TransferLink, pair: Pair, first: memoryview | None, chunks: Iterator[memoryview], keys: int, other: int
) -> bool:
    """Sends or receives the header and the chunks. Returns False if the other rank is lost meanwhile."""
    under_way: deque[Outcome] = deque()
    if first is not None:
        under_way.append(link.give(pair.name("beginning"), first, pair.donor, pair.newcomer.rank, steers=True))
        if not _settled(link, under_way, 0, other):
            return False
    for number, chunk in enumerate(chunks):
        try:
            name = pair.name(f"part {number % keys} of {keys}")
            under_way.append(link.give(name, chunk, pair.donor, pair.newcomer.rank))
        except WorkerLostError:
            # The key has failed.
            return _gone(link, other)
        # One more than there are keys, so that each key has its next round at once.
        if not _settled(link, under_way, 2 * keys - 1, other):
            return False
    return _settled(link, under_way, 0, other)


def _settled(link: TransferLink, under_way: "deque[Outcome]", most: int, other: int) -> bool:
    """Waits until at most so many chunks are under way. Returns False if the other rank is lost meanwhile."""
    while len(under_way) > most:
        oldest = under_way[0]
        link.wait(lambda oldest=oldest: oldest.done() or link.is_lost(other))  # type: ignore[misc]
        if not oldest.done():
            return False
        try:
            oldest.result()
        except WorkerLostError:
            return _gone(link, other)
        under_way.popleft()
    return True


def _gone(link: TransferLink, other: int) -> bool:
    """Waits until it is known that the other rank is lost, for a key has failed because of that."""
    link.wait(lambda: link.is_lost(other))
    return False


def _chunk_bytes(size: int) -> int:
    """The size of the chunks of a stream: of a small one, each key has one chunk."""
    share = -(-max(1, size) // _KEYS)
    return min(_CHUNK_BYTES, -(-share // _LEAST_CHUNK_BYTES) * _LEAST_CHUNK_BYTES)


def _header(content: dict[str, object]) -> bytes:
    text = json.dumps(content).encode()
    if _LENGTH.size + len(text) > _HEADER_BYTES // 2:
        raise PsumError(f"the header of a state has {len(text)} bytes; this is a bug")
    return _LENGTH.pack(len(text)) + text
