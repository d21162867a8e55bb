"""What is wrong with a hello by itself, whatever jobs there are."""

from collections.abc import Sequence
from typing import Final

from psum.aggregator.core.roster import ranks_of
from psum.v1 import aggregator_pb2 as pb
from psum.wire import MAX_PARTITION_BYTES, MAX_WORKERS, PROTOCOL_VERSION, parse_destination
from psum.wire.errors import FaultError, InvalidError

#: The most aggregators that a relay forwards to. It has buffers for each.
_MAX_AGGREGATORS: Final = 4096

#: The longest name of a job or a worker, in characters.
_MAX_NAME: Final = 253

#: How many weights or ranks of a hello are repeated in an error.
_MAX_SHOWN: Final = 8


def invalid(hello: pb.Hello) -> FaultError | None:
    """Why a hello makes no sense by itself; None if it does."""
    if len(hello.worker) > _MAX_NAME or not hello.worker.isprintable():
        return InvalidError(f"a worker was refused: a worker's name has at most {_MAX_NAME} printable characters")
    who = f"{hello.worker or 'an unnamed worker'} was refused"
    if hello.protocol_version != PROTOCOL_VERSION:
        return InvalidError(
            f"{who}: it speaks version {hello.protocol_version} of the protocol, this aggregator version"
            f" {PROTOCOL_VERSION}; install the same psum on both sides"
        )
    if not 0 < len(hello.job) <= _MAX_NAME or not hello.job.isprintable():
        return InvalidError(f"{who}: a job's name has 1 to {_MAX_NAME} printable characters")
    if (hello.joining or hello.generation or hello.admissions) and not hello.HasField("elastic"):
        return InvalidError(
            f"{who}: it asks to join a running job, or was admitted to one, which is not elastic (PSUM_ELASTIC)"
        )
    most = max(hello.num_workers, hello.elastic.max) if hello.HasField("elastic") else hello.num_workers
    if not 0 < hello.num_workers <= MAX_WORKERS or hello.rank >= most:
        return InvalidError(
            f"{who}: rank {hello.rank} of {most} workers; a job has 1 to {MAX_WORKERS} workers, ranks from 0"
        )
    ranks = ranks_of(hello)
    if ranks[0] != hello.rank or list(ranks) != sorted(set(ranks)) or ranks[-1] >= most:
        return InvalidError(
            f"{who}: rank {hello.rank} that stands for {_listed(ranks)} of {hello.num_workers} workers; expected"
            " each rank once, in ascending order, from its own rank"
        )
    if hello.group_size > hello.num_workers or (0 < hello.group_size < len(ranks) and not hello.elastic.max):
        return InvalidError(
            f"{who}: {_listed(ranks)} in a group of {hello.group_size} of {hello.num_workers} workers; a group has"
            " as many ranks as one of its members at least, and as many as the job at most"
        )
    if hello.group_size and (problem := unusable_addresses(hello)) is not None:
        return InvalidError(f"{who}: it asks for a relay to {problem}")
    if not 0 < hello.partition_bytes <= MAX_PARTITION_BYTES:
        return InvalidError(f"{who}: a partition of {hello.partition_bytes} bytes; expected 1 to {MAX_PARTITION_BYTES}")
    if hello.weights and (len(hello.weights) != len(hello.aggregators) or 0 in hello.weights):
        return InvalidError(
            f"{who}: {len(hello.weights)} weights {list(hello.weights)[:_MAX_SHOWN]} for {len(hello.aggregators)}"
            " aggregators; expected none, or one for each, from 1"
        )
    if hello.HasField("elastic") and (problem := _wrong_elastic(hello)) is not None:
        return InvalidError(f"{who}: {problem}")
    for each in hello.departures:
        gone = list(each.ranks)
        if not gone or gone != sorted(set(gone)) or gone[-1] >= most:
            return InvalidError(
                f"{who}: it says that a member for {_listed(gone)} of {hello.num_workers} workers has left;"
                " expected each rank once, in ascending order"
            )
    if hello.planes and pb.PLANE_INLINE not in hello.planes:
        return InvalidError(f"{who}: it does not offer the inline plane, which every worker must offer")
    return None


def unusable_addresses(hello: pb.Hello) -> str | None:
    """Why a relay cannot forward to the aggregators of a hello; None if it can. Only the relay connects to them."""
    if not 0 < len(hello.aggregators) <= _MAX_AGGREGATORS:
        return f"{len(hello.aggregators)} aggregators; expected 1 to {_MAX_AGGREGATORS}"
    try:
        for address in (*hello.aggregators, *(relay.address for relay in hello.next_relays)):
            parse_destination(address)
    except ValueError as error:
        return f"no address of an aggregator: {error}"
    return None


def _wrong_elastic(hello: pb.Hello) -> str | None:
    """Why an elastic job cannot be as a hello says; None if it can."""
    least, most = hello.elastic.min, hello.elastic.max
    if not 0 < least <= hello.num_workers <= most <= MAX_WORKERS:
        return (
            f"an elastic job of {least} to {most} ranks that begins with {hello.num_workers}; expected at least 1,"
            f" at most {MAX_WORKERS}, and its {hello.num_workers} workers between (PSUM_ELASTIC, PSUM_NUM_WORKERS)"
        )
    if not len(hello.ranks) == len(hello.incarnations) == len(hello.generations) or 0 in hello.incarnations:
        return (
            f"it stands for {len(hello.ranks)} ranks of an elastic job, with {len(hello.incarnations)} processes and"
            f" {len(hello.generations)} generations; expected a process and a generation for each rank"
        )
    if hello.joining and len(hello.ranks) > 1:
        return f"a relay for {len(hello.ranks)} ranks asks to join an elastic job; expected one rank at first"
    if any(each.rank >= most for each in hello.losses):
        return f"it says that a rank is lost which is none of {most}"
    if (hello.joining or hello.generation) and not (hello.incarnation or hello.ranks):
        return "a process that asks to join must have an incarnation"
    return None


def _listed(ranks: Sequence[int]) -> str:
    """Ranks as a hello lists them, the first of many."""
    more = f" and {len(ranks) - _MAX_SHOWN} more" if len(ranks) > _MAX_SHOWN else ""
    return f"ranks {list(ranks[:_MAX_SHOWN])}{more}"
