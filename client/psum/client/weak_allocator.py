"""Allocating a client's memory without keeping the client alive."""

import weakref
from collections.abc import Callable
from typing import Protocol

from psum.planes import Block


class Allocates(Protocol):
    """What has memory that aggregators on this host read from: a Client."""

    def allocate(self, size: int) -> Block | None:
        """See Client.allocate."""
        ...


def weak_allocator(client: Allocates) -> Callable[[int], Block | None]:
    """Returns what allocates a client's memory as long as there is the client. None follows when it is gone.

    It is for what lives as long as its client, and must not keep it alive.
    """
    reference = weakref.ref(client)

    def allocate(size: int) -> Block | None:
        alive = reference()
        return None if alive is None else alive.allocate(size)

    return allocate
