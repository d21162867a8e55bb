"""This process as a worker of its job: joining, leaving, and who it is."""

import os
import threading
from collections.abc import Mapping
from typing import Any, Final

import torch.distributed as dist
from psum.client import Client, Settings, Store, shared_client
from psum.torch import rendezvous

#: Stands for aggregators where only ranks are read: psum's settings ask several workers for some.
_ANY: Final = ("127.0.0.1:1",)

_client: Client | None = None
_store: Store | None = None
_kept: Any = None
"""torch's store by which the ranks met. Rank 0 serves it as long as it lives."""
_lock = threading.RLock()


def init() -> None:
    """Joins this process's job. A second call does nothing. All ranks must call it.

    Which job that is:

    1. With torch.distributed's backend psum, the job of the default group. So call init_process_group("psum") first.
    2. With another backend of torch.distributed, the ranks and sizes are those of its default group.
    3. Else psum's variables tell, as for every worker of psum, and then torchrun's.

    In the cases 2 and 3, psum starts an aggregator on each host if PSUM_AGGREGATORS names none.

    Raises:
        ConfigurationError: The environment's settings cannot be used, or ranks disagree.
        ConnectError: An aggregator was not reached in time.
        FaultError: An aggregator refused this worker.
    """
    _joined()


def is_initialized() -> bool:
    """Whether this process has joined its job with `init`, and has not left it."""
    return _client is not None and not _client.closed


def shutdown() -> None:
    """Leaves the job, after outstanding operations. Does nothing if the process is in none.

    The job of torch.distributed's backend psum is left by destroy_process_group instead.
    """
    global _client, _store, _kept
    with _lock:
        client, _client, _store = _client, None, None
        if client is not None and client is not groups_client():
            client.close()
        _kept = None


def rank() -> int:
    """This process's rank, from 0 to size() - 1."""
    return _current().rank


def size() -> int:
    """The number of processes of the job."""
    return _current().num_workers


def local_rank() -> int:
    """This process's rank among those on its host, from 0 to local_size() - 1."""
    return _current().local_rank


def local_size() -> int:
    """The number of processes of the job on this host."""
    return _current().local_size


def client() -> Client:
    """The membership in the job that `init` has joined.

    Raises:
        RuntimeError: The process has not called `init`.
    """
    return _current()


def groups_client() -> Client | None:
    """The client of torch.distributed's default group, if its backend is psum."""
    client = getattr(dist.group.WORLD, "client", None) if _has_group() else None
    return client if isinstance(client, Client) else None


def store() -> Store:
    """The store of push_pull and the broadcasts.

    Raises:
        RuntimeError: The process has not called `init`.
    """
    _current()
    assert _store is not None
    return _store


def new_store() -> Store:
    """Makes a store. Joins the job first if the process has not."""
    return _joined().store()


def _current() -> Client:
    if _client is None:
        raise RuntimeError("this process has joined no job; call psum.torch.init() first")
    return _client


def _joined() -> Client:
    global _client, _store
    with _lock:
        if _client is None or _client.closed:
            client = groups_client() or _join()
            _client, _store = client, client.store()
        return _client


def _join() -> Client:
    global _kept
    if _has_group():
        _kept, rank, size = dist.distributed_c10d._get_default_store(), dist.get_rank(), dist.get_world_size()
    elif _is_told_by_torch(os.environ):
        _kept, rank, size = next(iter(dist.rendezvous("env://")))
    else:
        if os.environ.get("RANK") or os.environ.get("WORLD_SIZE"):
            # One of them alone is an error: each process would train alone otherwise.
            rendezvous.missing_from_torch(os.environ, {})
        return shared_client()
    return rendezvous.connect(dist.PrefixStore("psum.torch.init", _kept), rank, size, timeout=dist.default_pg_timeout)


def _has_group() -> bool:
    return bool(dist.is_available() and dist.is_initialized())


def _is_told_by_torch(environ: Mapping[str, str]) -> bool:
    """Whether only torch's variables tell this process's rank, or nothing names aggregators."""
    if not (environ.get("RANK") and environ.get("WORLD_SIZE")):
        return False
    sources = Settings.from_environment(environ, aggregators=_ANY).sources
    alone = Settings.from_environment(environ, rank=0, num_workers=1, local_rank=0, local_size=1)
    return not ("rank" in sources and "num_workers" in sources and alone.aggregators)
