"""The fleet of a job: learns of which processes the listed aggregators consist, before this worker joins."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from psum.client import termination
from psum.client.core.process_lists import Processes, aggregators_of, fleet_of
from psum.client.observe import process_name
from psum.client.observe.logging import set_up_logging
from psum.client.route import Route, route_of
from psum.client.settings import Settings
from psum.client.transport.loop_thread import LoopThread
from psum.client.transport.process_lists import ask_for_processes, ask_relay_for_processes
from psum.client.transport.usable_planes import usable_planes
from psum.runtime import open_descriptors, replaced
from psum.v1 import aggregator_pb2 as pb
from psum.wire import is_local
from psum.wire.errors import ConnectError, WorkerLostError

_log = logging.getLogger(__name__)


class _Newcomer:
    """A worker that has joined nowhere yet. It ends on SIGTERM, also as process 1, and has nobody to tell."""

    def __init__(self, settings: Settings) -> None:
        self.rank = settings.rank
        self.title = f"rank {settings.rank} of job {settings.job!r}"

    def part(self, fault: WorkerLostError) -> "Future[None] | None":
        return None


@dataclasses.dataclass(frozen=True, slots=True)
class Fleet:
    """What a worker knows before it joins.

    Attributes:
        settings: Its settings, with every process of the listed aggregators in the place of its aggregator.
        route: Where it connects to.
        aggregators: For each process the number of its aggregator; see `aggregators_of`.
        by_roles: Whether the weights follow from where aggregators run. The settings have none then.
        descriptors_before: How many file descriptors were open before it opened some to learn that, which it uses
            further on.
    """

    settings: Settings
    route: Route
    aggregators: Sequence[int]
    by_roles: bool
    descriptors_before: int


@contextlib.contextmanager
def whole_fleet(settings: Settings) -> Iterator[Fleet]:
    """Decides where the worker connects to, and asks the listed aggregators, or its relay, for their processes.

    SIGTERM is handled until the end of the block, by which the client handles it.

    Raises:
        ConnectError: An aggregator was not reached in time, one side does not trust the other, or this process may
            have too few file descriptors.
        ConfigurationError: The list cannot be used with these aggregators, or a file cannot be used.
    """
    # By the list as it is: all workers of a host must decide alike, and its own processes are not others.
    route = route_of(settings)
    # Before gRPC is used: it ends the process if it cannot open a descriptor of its own.
    usable_planes(settings, route.connections)
    before = open_descriptors()
    newcomer = _Newcomer(settings)
    termination.watch(newcomer)
    try:
        processes, vacant = _ask(settings, route) if settings.aggregators else ((), frozenset())
        if settings.elastic is not None and settings.rank in vacant and not settings.joining:
            # Its relay may have no group that could tell.
            _log.warning("rank %d joins the running job in place of a process that is lost or has left", settings.rank)
            settings = replaced(settings, joining=True)
        addresses, weights = fleet_of(settings.aggregators, settings.weights, processes)
        aggregators = aggregators_of(settings.aggregators, addresses, processes)
        by_roles = not settings.weights and have_roles(addresses, aggregators)
        if by_roles:
            weights = ()
        if len(addresses) != len(settings.aggregators):
            settings = replaced(settings, aggregators=addresses, weights=weights)
        yield Fleet(settings, route.to(addresses), aggregators, by_roles, before)
    finally:
        termination.forget(newcomer)


def have_roles(addresses: Sequence[str], aggregators: Sequence[int]) -> bool:
    """Whether it can matter where aggregators run: where all addresses are local, all is on one host.

    All workers decide this alike from what they agree on.

    Args:
        addresses: The addresses of all processes.
        aggregators: For each the number of its aggregator.
    """
    return len(set(aggregators)) > 1 and not all(map(is_local, addresses))


def _ask(settings: Settings, route: Route) -> tuple[Sequence[Processes], frozenset[int]]:
    """What each listed aggregator says of its processes, and with a relay, which ranks of the job have none."""
    set_up_logging(settings)
    thread = LoopThread("psum-client")
    try:
        if not route.relay:
            return thread.run(ask_for_processes(settings)), frozenset()
        hello = pb.Hello(job=settings.job, rank=settings.rank, worker=process_name.name())
        route.describe(hello)
        return thread.run(ask_relay_for_processes(settings, route.relay, hello))
    except ConnectError as error:
        raise route.explained(error) from None
    finally:
        thread.stop()
