"""Finds out that one address leads to several aggregators, as a Kubernetes Service with two replicas does.

Ranks at different processes wait for each other, and no process knows of the ranks at the others. So a worker that
waits for its first sum connects to the address again from time to time, and asks which process is there. Another
process that is older than the worker's own connection shows that there are several. Processes that are ending, or that
were started since, do not count.
"""

import asyncio
import dataclasses
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import grpc
import grpc.aio

from psum.client.transport.credentials import Credentials
from psum.client.transport.data_dialer import addresses_of
from psum.client.transport.status_call import call_status
from psum.runtime import rank_names
from psum.v1 import aggregator_pb2 as pb
from psum.wire import NO_PROXY, join_address, split_address
from psum.wire.errors import ConfigurationError, DisagreementError, ProtocolError

#: How long a worker waits for its first sum before it asks, and the shortest and longest pause between questions.
_FIRST_PAUSE_SECONDS: Final = 2.0
_LAST_PAUSE_SECONDS: Final = 60.0

#: How long there must be several processes. When a new one replaces an old one, both are there for a moment.
_CERTAIN_SECONDS: Final = 5.0

#: How long one question may take.
_ANSWER_SECONDS: Final = 3.0

#: How many ranks of a job ask at a time, even if it has thousands.
_ASKING: Final = 64

#: The most addresses of a host that are asked.
_MAX_ADDRESSES: Final = 4

_CHANNEL_OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), NO_PROXY)


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """The worker whose connection it is.

    Attributes:
        job: The job's name.
        rank: The worker's rank.
        num_workers: The job's size.
    """

    job: str
    rank: int
    num_workers: int


def is_another(status: pb.GetStatusResponse, incarnation: int, age: float) -> bool:
    """Whether an answer comes from another process than the one that a worker is connected to.

    Args:
        status: The answer.
        incarnation: The incarnation of the process that the worker is connected to.
        age: How long ago the worker connected, in seconds. A process that was started since may have replaced that one.
    """
    return status.incarnation != incarnation and not status.draining and status.uptime_seconds > age


def split(member: Member, address: str, status: pb.GetStatusResponse) -> DisagreementError | None:
    """The error if other ranks of the job are at another process, which answers this; None if no rank is there."""
    elsewhere = sorted(
        rank
        for job in status.jobs
        if job.name == member.job
        for worker in job.workers
        # A rank that has vanished there may have found out before this one.
        if worker.rank != member.rank and not worker.left
        # A relay stands for several ranks.
        for rank in worker.ranks or [worker.rank]
    )
    if not elsewhere:
        return None
    return DisagreementError(
        f"address {address} leads to more than one aggregator: rank {member.rank} of job {member.job!r} came to one,"
        f" {rank_names(elsewhere)} to another, so they would never meet."
        " Give every aggregator an address of its own, and list all of them in PSUM_AGGREGATORS; in Kubernetes, use the"
        " pods' names in a headless Service, or one Service for each pod, not one Service for several pods",
        ranks=sorted({member.rank, *elsewhere}),
    )


async def watch_for_split(
    member: Member,
    address: str,
    incarnation: int,
    *,
    credentials: Credentials,
    waiting: Callable[[], bool | None],
) -> None:
    """Asks which process is at an address while a worker waits for its first sum from there; ends when it has one.

    Args:
        member: The worker.
        address: The address, not a unix socket.
        incarnation: The incarnation of the process that the worker is connected to.
        credentials: What is shown there.
        waiting: Whether the worker waits for its first sum; None: there is no need to ask any more.

    Raises:
        DisagreementError: Other ranks of the job are at another process there.
    """
    since = time.monotonic()

    def another(status: pb.GetStatusResponse) -> bool:
        return waiting() is True and is_another(status, incarnation, time.monotonic() - since)

    for pause in pauses():
        await asyncio.sleep(pause)
        # The program may take long before it uses its first tensor.
        while not (state := waiting()):
            if state is None:
                return
            await asyncio.sleep(_FIRST_PAUSE_SECONDS)
        if random.random() * member.num_workers >= _ASKING:
            continue
        for target in await _targets(address, credentials):
            status = await _ask(another, member.job, *target)
            if status is not None and (error := split(member, address, status)) is not None:
                raise error


def pauses() -> Iterator[float]:
    """Seconds between questions: short at first, then longer and longer, jittered so that workers spread out."""
    pause = _FIRST_PAUSE_SECONDS
    while True:
        yield pause * random.uniform(1, 1.25)
        pause = min(_LAST_PAUSE_SECONDS, pause * 1.2)


async def _targets(address: str, credentials: Credentials) -> list[tuple[str, Credentials]]:
    """Where to ask: each address of the host, or the only one twice, since a load balancer takes turns."""
    host, port = split_address(address)
    try:
        found = (await addresses_of(host, port))[:_MAX_ADDRESSES]
    except OSError:
        found = []
    if len(found) < 2:
        return [(address, credentials)] * 2
    named = dataclasses.replace(credentials, server_name=credentials.server_name or host)
    return [(join_address(one, port), named) for one in found]


async def _ask(
    another: Callable[[pb.GetStatusResponse], bool], job: str, address: str, credentials: Credentials
) -> pb.GetStatusResponse | None:
    """Asks which process is there; returns its answer about the job if it is certainly another process."""
    try:
        async with credentials.aio_channel(address, _CHANNEL_OPTIONS) as channel:
            ask = partial(call_status, channel, patience=_ANSWER_SECONDS, metadata=credentials.metadata())
            status = await ask(pb.GetStatusRequest(without_jobs=True))
            if not another(status):
                return None
            await asyncio.sleep(_CERTAIN_SECONDS)
            # On the same connection, so the same process answers.
            status = await ask(pb.GetStatusRequest(job=job))
            return status if another(status) else None
    except (grpc.RpcError, ProtocolError, ConfigurationError):
        # This does not keep ranks apart, or it shows up elsewhere.
        return None
