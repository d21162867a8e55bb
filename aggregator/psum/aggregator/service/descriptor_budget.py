"""The file descriptors of an aggregator: how many are promised to workers, so that it never runs out of them."""

import asyncio
import contextlib
import logging
import socket
from typing import Final

from psum.runtime import HOW_TO_RAISE, descriptor_limit, open_descriptors

_log = logging.getLogger(__name__)

#: The part of the limit that is kept back, and its bounds. It is for connections that have not sent a hello yet or are
#: about to be refused, for HTTP, and for files that are read from time to time.
_RESERVED_PART: Final = 16
_LEAST_RESERVE: Final = 8
_MOST_RESERVE: Final = 512

#: How often the monitor looks whether all descriptors are open, and how often it logs that while it lasts.
_LOOK_SECONDS: Final = 5.0
_LOG_SECONDS: Final = 60.0


class DescriptorBudget:
    """Counts descriptors. Those that a worker may open later, as for its data connection, are taken when offered.

    Args:
        limit: How many descriptors the process may have.
        used: How many it has before the first worker connects.
    """

    def __init__(self, limit: int, used: int) -> None:
        self.limit = limit
        self._used = used
        self._free = limit - used - reserve(limit)
        self._ending = 0
        self._given = asyncio.Event()

    @property
    def left(self) -> int:
        """How many are neither taken nor kept back; as many more workers can connect."""
        return max(0, self._free)

    def recount(self, used: int) -> None:
        """Sets how many the process has without those of workers, now that it listens on all addresses."""
        self._free -= used - self._used
        self._used = used

    def fits(self, count: int, *, leaving: int = 0) -> bool:
        """Whether this many can be taken so that at least `leaving` are left."""
        return self._free - count >= leaving

    def take(self, count: int) -> None:
        """Counts descriptors that are opened or promised."""
        self._free -= count

    def end(self, count: int) -> None:
        """Counts taken descriptors of a stream that has ended: they are given back when its last messages are sent."""
        self._ending += count

    def give(self, count: int, *, ended: bool = False) -> None:
        """Returns descriptors that were taken and are closed; `ended` says that `end` has counted them."""
        self._free += count
        if ended:
            self._ending -= count
        self._given.set()

    async def await_room(self, count: int, seconds: float) -> None:
        """Waits while this many do not fit, and streams that have ended will give some back, for at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._ending > 0 and not self.fits(count):
                    self._given.clear()
                    await self._given.wait()

    def lack(self, what: str) -> str:
        """The text for a lack of descriptors; `what` is its consequence."""
        return (
            f"{what}: the aggregator on {socket.gethostname()} may have {self.limit} files and connections open (its"
            f" limit of file descriptors), {self._used} are its own, and each worker takes 1 to 4; {HOW_TO_RAISE},"
            " where the aggregator is started"
        )


def reserve(limit: int) -> int:
    """How many descriptors of a limit are kept back."""
    return max(_LEAST_RESERVE, min(_MOST_RESERVE, limit // _RESERVED_PART))


class DescriptorMonitor:
    """Logs an error if all descriptors are open nevertheless, for example by connections that belong to no worker.

    The libraries that accept connections do not report it: new connections then wait, or are closed at once. It looks
    regularly from construction to `close`, on the running event loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._logged_at = -_LOG_SECONDS
        self._look()

    def close(self) -> None:
        """Stops."""
        self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)
        limit, used = descriptor_limit(), open_descriptors()
        if used >= limit - 1 and self._loop.time() - self._logged_at >= _LOG_SECONDS:
            self._logged_at = self._loop.time()
            _log.error(
                "%d of %d file descriptors are in use: new connections wait or are closed at once, whoever makes them;"
                " %s, where the aggregator is started",
                used,
                limit,
                HOW_TO_RAISE,
            )
