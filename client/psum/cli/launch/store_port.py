"""A port for torch's store (MASTER_PORT), where rank 0 of a job listens if the workers use torch.distributed."""

import contextlib
import socket
from typing import Self


class StorePort:
    """A free port that no other process gets as long as this is open. A context manager.

    A socket is bound to the port and does not listen. Linux lets another process listen there if both sides set
    SO_REUSEADDR, as torch does. So jobs that start at the same time do not get the same port.

    Attributes:
        number: The port.
    """

    def __init__(self) -> None:
        self._socket = _bound()
        self.number: int = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def _bound() -> socket.socket:
    """A socket on any port that is free on all addresses, because torch's store listens on all."""
    # A host may have no IPv6.
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        both = stack.enter_context(socket.socket(socket.AF_INET6))
        both.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        both.bind(("::", 0))
        stack.pop_all()
        return both
    only = socket.socket(socket.AF_INET)
    only.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    only.bind(("", 0))
    return only
