"""The clients of this process: joining a job, and the one client that all parts of a program share."""

import atexit
import threading
import weakref

from psum.client.client import Client
from psum.client.core.store_numbers import StoreNumber, StoreNumbers
from psum.client.settings import Settings
from psum.wire.errors import TakenError

_clients: "weakref.WeakSet[Client]" = weakref.WeakSet()
_shared: Client | None = None
_sharing = threading.RLock()
"""Held while the shared client connects. This lock and the next are reentrant: a signal's handler may run where the
main thread has them."""
_upcoming = StoreNumbers()
"""For the stores of the next shared client."""
_numbering = threading.RLock()
"""Held for a moment only, unlike the other."""


def connect(settings: Settings | None = None, *, staging: bool = False) -> Client:
    """Joins a job.

    Args:
        settings: By default those that the environment gives. With one worker and no aggregators the client needs no
            connection: every sum is the value itself.
        staging: Whether Client.allocate is to be of use.

    Raises:
        ConfigurationError: The environment's settings cannot be used.
        ConnectError: An aggregator could not be reached in time.
        FaultError: An aggregator refused this worker. A TakenError says so where it is this process that has the rank
            already, by another client.
    """
    return _connected(Client(settings or Settings.from_environment(), staging=staging))


def shared_client() -> Client:
    """The client that this process shares, connected on first use as the environment says.

    The KVStore uses the same one. Its stores are numbered in the order in which the program makes them, those of the
    KVStore among them, so all ranks must make theirs in the same order.
    """
    global _shared, _upcoming
    with _sharing:
        if _shared is None or _shared.closed:
            client = _connected(Client(Settings.from_environment(), staging=True, numbering=_upcoming))
            with _numbering:
                _shared, _upcoming = client, StoreNumbers()
        return _shared


def reserve_store() -> StoreNumber:
    """Numbers a store of the shared client that is made later, by Client.store. Does not connect, and does not wait."""
    with _numbering:
        return (_upcoming if _shared is None or _shared.closed else _shared.numbering).next()


def _connected(client: Client) -> Client:
    try:
        # What this process has itself does not end by waiting.
        client.connect(waits_for_rank=_other_client(client) is None)
        _clients.add(client)
    except TakenError as error:
        if (holder := _other_client(client)) is None:
            raise
        way = "psum.client.shared_client() gives it, and the KVStore 'byteps' uses it as well"
        if holder is not _shared:
            way = (
                "use that one, or close it first; beside the KVStore 'byteps', use psum.client.shared_client() instead"
                " of psum.client.connect()"
            )
        raise TakenError(
            f"this process is rank {client.rank} of job {client.settings.job!r} already, by a client that it made"
            f" before: {way}",
            ranks=error.ranks,
        ) from None
    return client


def _other_client(client: Client) -> Client | None:
    """The open client of this process that has the same rank of the same job."""
    mine = client.settings
    for other in list(_clients):
        its = other.settings
        if other is client or other.closed or other.forked:
            continue
        if (its.job, its.rank) == (mine.job, mine.rank) and set(its.aggregators) & set(mine.aggregators):
            return other
    return None


@atexit.register
def _close_all() -> None:
    for client in list(_clients):
        client.close(timeout=2.0)
