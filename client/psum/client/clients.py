"""The clients of this process: joining a job, and the client that all parts of a program share."""

import atexit
import threading
import weakref

from psum.client.client import Client
from psum.client.core.store_numbers import StoreNumber, StoreNumbers
from psum.client.fleet import whole_fleet
from psum.client.settings import Settings
from psum.wire.errors import TakenError

_clients: "weakref.WeakSet[Client]" = weakref.WeakSet()
_shared: Client | None = None
_sharing = threading.RLock()
"""Held while the shared client connects. This lock and the next are reentrant, because a signal's handler may run while
the main thread holds them."""
_upcoming = StoreNumbers()
"""Numbers the stores of the next shared client."""
_numbering = threading.RLock()
"""Held only for a moment, unlike the other lock."""


def connect(settings: Settings | None = None, *, staging: bool = True) -> Client:
    """Joins a job.

    Args:
        settings: By default, those from the environment. With one worker and no aggregators the client needs no
            connection: every sum is the value itself.
        staging: Whether Client.empty and Client.allocate give memory that aggregators on this host read from. It takes
            two file descriptors, and nothing else before it is used.

    Raises:
        ConfigurationError: The environment's settings cannot be used.
        ConnectError: An aggregator was not reached in time.
        FaultError: An aggregator refused this worker. It is a TakenError if another client of this process has the
            rank already.
    """
    return _connected(settings or Settings.from_environment(), staging=staging)


def shared_client() -> Client:
    """Returns the client that this process shares. The first call connects it as the environment says.

    The KVStore uses it too. Its stores, including those of the KVStore, are numbered in the order in which the program
    makes them. So all ranks must make theirs in the same order.
    """
    global _shared, _upcoming
    with _sharing:
        if _shared is None or _shared.closed:
            client = _connected(Settings.from_environment(), staging=True, numbering=_upcoming)
            with _numbering:
                _shared, _upcoming = client, StoreNumbers()
        return _shared


def reserve_store() -> StoreNumber:
    """Reserves the number of a store that Client.store of the shared client makes later. Neither connects nor waits."""
    with _numbering:
        return (_upcoming if _shared is None or _shared.closed else _shared.numbering).next()


def _connected(settings: Settings, *, staging: bool, numbering: StoreNumbers | None = None) -> Client:
    with whole_fleet(settings) as fleet:
        client = Client(fleet, staging=staging, numbering=numbering)
        try:
            # What this process has itself does not end by waiting.
            client.connect(waits_for_rank=_other_client(client) is None)
        except TakenError as error:
            raise _taken(client, error) from None
        _clients.add(client)
        return client


def _taken(client: Client, error: TakenError) -> TakenError:
    """Returns the error with advice, if another client of this process has the rank."""
    if (holder := _other_client(client)) is None:
        return error
    advice = "psum.client.shared_client() gives it, and the KVStore 'byteps' uses it as well"
    if holder is not _shared:
        advice = (
            "use that one, or close it first; beside the KVStore 'byteps', use psum.client.shared_client() instead"
            " of psum.client.connect()"
        )
    return TakenError(
        f"this process is rank {client.rank} of job {client.settings.job!r} already, through a client that it made"
        f" before: {advice}",
        ranks=error.ranks,
    )


def _other_client(client: Client) -> Client | None:
    """Returns another open client of this process with the same rank of the same job."""
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
