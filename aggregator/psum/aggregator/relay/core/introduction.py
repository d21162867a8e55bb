"""How a relay introduces itself to the aggregators that it forwards to: as a member for the ranks of its group."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence

from psum.aggregator.core.worker import Process, Worker, processes_of, set_processes
from psum.runtime import rank_names
from psum.v1 import aggregator_pb2 as pb


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """The process that relays.

    Attributes:
        incarnation: The number that identifies the process.
        name: Where it runs, for people: host name and process id.
    """

    incarnation: int
    name: str


def uplink_addresses(hello: pb.Hello) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Where a relay forwards to, according to its workers.

    Returns:
        The address of each uplink, and the uplink that leads to each owner of shards.
    """
    if hello.next_relays:
        return (hello.next_relays[0].address,), (0,) * len(hello.aggregators)
    return tuple(hello.aggregators), tuple(range(len(hello.aggregators)))


def ranks_in(workers: Sequence[Worker]) -> tuple[int, ...]:
    """The ranks of a group, in ascending order."""
    # In an elastic job, the process of a rank may be behind another member than the one before.
    return tuple(sorted({rank for worker in workers for rank in worker.ranks}))


def title(identity: Identity, workers: Sequence[Worker]) -> str:
    """A relay in the log and in errors."""
    return f"the relay on {identity.name} for {rank_names(ranks_in(workers))}"


def introduction(
    identity: Identity,
    workers: Sequence[Worker],
    uplink: int,
    now: float,
    *,
    resuming: bool,
    departures: Sequence[pb.Departure] = (),
) -> pb.Hello:
    """The hello of a relay, made from those of its group.

    Args:
        identity: The process that relays.
        workers: The members of the group, at least one.
        uplink: The index of the uplink.
        now: The time, by the clock of the workers' times.
        resuming: Whether this process was in the job before.
        departures: The other members of the job there that have left.
    """
    ranks = ranks_in(workers)
    first = min(workers, key=lambda worker: worker.ranks).hello
    said = [worker.hello for worker in workers]
    further = first.next_relays[1:]
    forwarded_by = dict.fromkeys(each for hello in said for each in hello.forwarded_by)
    return pb.Hello(
        protocol_version=first.protocol_version,
        job=first.job,
        rank=ranks[0],
        ranks=ranks,
        num_workers=first.num_workers,
        incarnation=_incarnation(said),
        partition_bytes=first.partition_bytes,
        aggregators=first.aggregators,
        weights=first.weights,
        aggregator_index=0 if first.next_relays else uplink,
        worker=f"relay on {identity.name} for {rank_names(ranks)}",
        # The relay is as late as the latest of its group.
        age_seconds=max(0.0, min(worker.hello.age_seconds + now - worker.joined for worker in workers)),
        # A group with a newcomer is a newcomer.
        resuming=resuming or all(hello.resuming for hello in said),
        placement=first.placement,
        group_size=first.next_relays[0].group_size if first.next_relays else 0,
        next_relays=further,
        forwarded_by=[*forwarded_by, identity.incarnation],
        departures=departures,
    )


def processes(hello: pb.Hello) -> Iterator[tuple[int, Process]]:
    """The ranks that a member stands for in an elastic job, each with its process."""
    yield from processes_of(hello).items() if hello.ranks else [(hello.rank, (hello.incarnation, hello.generation))]


def be_elastic(hello: pb.Hello, elastic: pb.Elastic, here: Mapping[int, Process]) -> None:
    """Adds to the hello of a relay what the owners of an elastic job must know: rank by rank, which process it is.

    Args:
        hello: The hello.
        elastic: How many ranks the job may have.
        here: The processes of the group that are neither lost nor have left, by rank; at least one.
    """
    set_processes(hello, here)
    hello.rank = hello.ranks[0]
    hello.elastic.CopyFrom(elastic)


def question(identity: Identity, hello: pb.Hello) -> pb.Hello:
    """What a relay tells the next one when it asks about aggregators for a worker.

    The same for all workers of its group: they ask at the same time, and one answer suits all of them.

    Args:
        identity: The process that asks.
        hello: What the worker said.
    """
    return pb.Hello(
        job=hello.job,
        worker=f"relay on {identity.name}",
        aggregators=hello.aggregators,
        group_size=hello.next_relays[0].group_size,
        next_relays=hello.next_relays[1:],
        forwarded_by=[*hello.forwarded_by, identity.incarnation],
    )


def _incarnation(said: Sequence[pb.Hello]) -> int:
    """A number that stays the same as long as the group's processes do, also if the relay is started again.

    0 if some process of the group has none: that process cannot come back, and neither can the group.
    """
    if not all(hello.incarnation for hello in said):
        return 0
    processes = sorted((hello.rank, hello.incarnation) for hello in said)
    return int.from_bytes(hashlib.blake2b(repr(processes).encode(), digest_size=8).digest(), "big") or 1
