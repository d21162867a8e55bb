"""The fleet of a job: learns of which processes the listed aggregators consist, before this worker joins."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from concurrent.futures import Future

from psum.client import termination
from psum.client.core.process_lists import fleet_of, process_weights
from psum.client.observe.logging import set_up_logging
from psum.client.settings import Settings
from psum.client.transport.loop_thread import LoopThread
from psum.client.transport.process_lists import ask_for_processes
from psum.client.transport.usable_planes import usable_planes
from psum.runtime import open_descriptors, replaced
from psum.wire.errors import WorkerLostError


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
        opened: How many file descriptors it has opened to learn that, and uses further on.
    """

    settings: Settings
    opened: int


@contextlib.contextmanager
def whole_fleet(settings: Settings) -> Iterator[Fleet]:
    """Asks the listed aggregators for their processes.

    SIGTERM is handled until the end of the block, by which the client handles it.

    Raises:
        ConnectError: An aggregator was not reached in time, one side does not trust the other, or this process may have
            too few file descriptors.
        ConfigurationError: The list cannot be used with these aggregators, or a file cannot be used.
    """
    # Before gRPC is used: it ends the process if it cannot open a descriptor of its own.
    usable_planes(settings, settings.aggregators)
    before = open_descriptors()
    newcomer = _Newcomer(settings)
    termination.watch(newcomer)
    try:
        whole = _expanded(settings)
        yield Fleet(whole, max(0, open_descriptors() - before))
    finally:
        termination.forget(newcomer)


def _expanded(settings: Settings) -> Settings:
    # A worker behind relays that its settings name may not reach the aggregators. Its list must have all processes.
    if not settings.aggregators or settings.relays:
        return settings
    set_up_logging(settings)
    thread = LoopThread("psum-client")
    try:
        told = thread.run(ask_for_processes(settings))
    finally:
        thread.stop()
    fleet = fleet_of(settings.aggregators, told)
    counts = tuple(map(len, fleet))
    if sum(counts) == len(counts):
        return settings
    weights = () if settings.weights_by_roles else process_weights(settings.weights, counts)
    addresses = tuple(itertools.chain.from_iterable(fleet))
    whole = replaced(settings, aggregators=addresses, weights=weights)
    # Not a field, because nobody sets it.
    object.__setattr__(whole, "asked", counts)
    return whole
