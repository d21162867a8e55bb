"""Which streams the file descriptors of an aggregator are promised to, so that it never runs out of them."""

import asyncio
import logging
import socket
from typing import Final

from psum.runtime import HOW_TO_RAISE, descriptor_limit, open_descriptors

_log = logging.getLogger(__name__)

#: What is kept back: for connections that are not introduced yet or are about to be refused, for HTTP, and for files
#: that are read in between.
_LEAST_RESERVE: Final = 8
_MOST_RESERVE: Final = 512
_RESERVED_PART: Final = 16

#: How often it is looked whether all are open, and how often that is told where it lasts.
_LOOK_SECONDS: Final = 5.0
_TELL_SECONDS: Final = 60.0


class DescriptorBudget:
    """A ledger. What a worker may open later, such as its data connection, is written down when it is offered.

    Args:
        limit: How many descriptors the process may have.
        used: How many it has before the first worker comes.
    """

    def __init__(self, limit: int, used: int) -> None:
        self.limit = limit
        self._used = used
        self._room = limit - used - reserve(limit)

    @property
    def left(self) -> int:
        """How many are neither taken nor kept back: as many more workers may come."""
        return max(0, self._room)

    def recount(self, used: int) -> None:
        """The process has so many without those of workers, now that it listens everywhere."""
        self._room -= used - self._used
        self._used = used

    def fits(self, count: int, *, leaving: int = 0) -> bool:
        """Whether so many can be taken, so that at least `leaving` are left."""
        return self._room - count >= leaving

    def take(self, count: int) -> None:
        """So many are opened, or promised."""
        self._room -= count

    def give(self, count: int) -> None:
        """So many that were taken are closed."""
        self._room += count

    def lack(self, who: str) -> str:
        """Why somebody cannot have what it asks for."""
        return (
            f"{who}: the aggregator on {socket.gethostname()} may have {self.limit} files and connections open (its"
            f" limit of file descriptors), {self._used} are its own, and each worker takes 1 to 4; {HOW_TO_RAISE},"
            " where the aggregator is started"
        )


def reserve(limit: int) -> int:
    """How many descriptors of so many are kept back."""
    return max(_LEAST_RESERVE, min(_MOST_RESERVE, limit // _RESERVED_PART))


class Watch:
    """Says so in the log where all descriptors are open nevertheless, as by connections that are no worker's.

    The libraries that accept connections do not say it: then new ones wait, or are closed at once. It looks from
    construction to `close`, on the running event loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._told_at = -_TELL_SECONDS
        self._look()

    def close(self) -> None:
        """Ends it."""
        self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)
        limit, used = descriptor_limit(), open_descriptors()
        if used >= limit - 1 and self._loop.time() - self._told_at >= _TELL_SECONDS:
            self._told_at = self._loop.time()
            _log.error(
                "%d of %d file descriptors are in use: new connections wait or are closed at once, whoever makes them;"
                " %s, where the aggregator is started",
                used,
                limit,
                HOW_TO_RAISE,
            )
