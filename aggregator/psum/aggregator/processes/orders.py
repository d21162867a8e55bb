"""What the supervisor and its processes tell each other, over a pair of sockets that only they have.

The supervisor sends a process its order. The process says that it serves, or why it cannot. Then the supervisor asks
questions, which are answered in their order. The end of the connection is the end of either side.
"""

import asyncio
import dataclasses
import pickle
import socket
import struct
from collections.abc import Sequence
from typing import Any, Final

from psum.aggregator.settings import Settings

_HEADER: Final = struct.Struct(">Q")

#: The questions: the metrics; the status with the throughput; why no worker can connect.
FAMILIES: Final = "families"
STATUS: Final = "status"
UNREADY: Final = "unready"

#: What a process is told, and answers None: whether all processes serve.
ALL_SERVE: Final = "all serve"
SOME_MISSING: Final = "some missing"


@dataclasses.dataclass(frozen=True)
class Order:
    """What one process shall be.

    Attributes:
        settings: Its own settings.
        number: Its number, from 0.
        addresses: Of each process, its addresses.
        reservations: The descriptor of the reservations for the memory budget.
        supervisor: The supervisor's process id.
    """

    settings: Settings
    number: int
    addresses: Sequence[Sequence[str]]
    reservations: int
    supervisor: int


@dataclasses.dataclass(frozen=True)
class Serves:
    """The process accepts workers."""


@dataclasses.dataclass(frozen=True)
class Fails:
    """The process cannot serve.

    Attributes:
        mistakes: Why, as in a ConfigurationError.
    """

    mistakes: Sequence[str]


def packed(value: Any) -> bytes:
    """A value as it is sent."""
    # Pickled: both ends are this program, and nobody else has the sockets.
    data = pickle.dumps(value)
    return _HEADER.pack(len(data)) + data


async def receive(reader: asyncio.StreamReader) -> Any:
    """The next value.

    Raises:
        EOFError, ConnectionError: The other side has ended.
    """
    (size,) = _HEADER.unpack(await reader.readexactly(_HEADER.size))
    return pickle.loads(await reader.readexactly(size))


def receive_now(connection: socket.socket) -> Any:
    """The next value from a blocking socket.

    Raises:
        EOFError: The other side has ended.
    """

    def read(size: int) -> bytes:
        found = b""
        while len(found) < size:
            if not (more := connection.recv(size - len(found))):
                raise EOFError("the supervisor has ended")
            found += more
        return found

    (size,) = _HEADER.unpack(read(_HEADER.size))
    return pickle.loads(read(size))
