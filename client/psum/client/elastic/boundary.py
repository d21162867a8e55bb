"""A step boundary of an elastic job: the roll call, and the admission of a process if all members name one."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from psum.client.core.roll_call import Process, Reading, Table, donors, read
from psum.client.elastic.packing import Packed, pack, unpack
from psum.client.elastic.transfer import Pair, TransferLink, give, receive, refuse
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import InvalidError, WorkerLostError

_log = logging.getLogger(__name__)

#: The entry of a state that is psum's own.
_OWN: Final = ""


class StartedRollCall(Protocol):
    """A roll call that has begun; see RollCall."""

    @property
    def done(self) -> bool: ...

    def result(self) -> Table: ...


class BoundaryLink(TransferLink, Protocol):
    """What a boundary needs of Link, which documents it."""

    @property
    def rank(self) -> int: ...

    @property
    def title(self) -> str: ...

    @property
    def weights_total(self) -> Sequence[int] | None: ...

    @property
    def admitted(self) -> list[pb.Admission]: ...

    def call(self, *, leaving: bool, ready: bool = True) -> StartedRollCall: ...

    def admit(self, process: Process) -> int: ...

    def complete(self) -> None: ...

    def wait_for_admission(self) -> None: ...

    def adopt_weights(self, total: Sequence[int]) -> None: ...

    def adopt(self, admitted: Sequence[pb.Admission]) -> None: ...


def conclude(
    link: BoundaryLink,
    call: StartedRollCall,
    *,
    settle: Callable[[], None],
    save: Callable[[], Mapping[str, object]],
    is_leaving: Callable[[], bool],
) -> Reading:
    """Ends a boundary, as a member. If a process is admitted, it has the state afterwards, or is lost.

    Args:
        link: Connects this rank with the other members.
        call: The boundary's roll call.
        settle: Called before an admission: makes sure that all operations of the step are complete.
        save: Gives the state of this process. May raise InvalidError.
        is_leaving: Whether this rank leaves.

    Returns:
        The last roll call of the boundary.

    Raises:
        PsumError: The job has failed.
    """
    present = read(call.result())
    if (newcomer := present.admitted) is None:
        return present
    settle()
    generation = link.admit(newcomer)
    _log.info("%s admits rank %d, generation %d", link.title, newcomer.rank, generation)
    try:
        present = read(link.call(leaving=is_leaving()).result())
        if newcomer.rank not in present.rows:
            _log.warning("rank %d was admitted to the job and was lost before it got the state", newcomer.rank)
            return present
        last = link.call(leaving=is_leaving())
        _provide_state(link, donors(present.rows), newcomer, last, save)
        present = read(last.result())
        if newcomer.rank not in present.rows:
            _log.warning("rank %d was admitted to the job and was lost before it had the state", newcomer.rank)
        return present
    finally:
        link.complete()


def join(link: BoundaryLink, load: Callable[[Mapping[str, object]], None]) -> Reading:
    """Joins a running job: waits for the admission of this process, and gets the state of the others.

    Args:
        link: Connects this process with the members.
        load: Takes the state. May raise an error, which ends the join: the others go on without this process.

    Returns:
        The last roll call of the boundary, in which this process is one of the members.

    Raises:
        InvalidError: The state could not be given or taken. The text names the entry.
        WorkerLostError: All members were lost before they had given the state.
        PsumError: This process was refused, or the job has failed.
    """
    link.wait_for_admission()
    rows = read(link.call(leaving=False, ready=False).result()).rows
    newcomer = Process(link.rank, rows[link.rank].incarnation)
    for donor in donors(rows):
        stream = receive(link, Pair(donor, newcomer), link.adopt_weights)
        if stream is not None:
            break
        _log.warning("rank %d was lost while it gave its state to %s; the next one does", donor, link.title)
    else:
        raise WorkerLostError(
            f"{link.title} was let into the job, and all members were lost before they had given it their state;"
            " start the job again",
            ranks=list(rows),
        )
    entries = unpack(stream)
    own = entries.pop(_OWN)
    load(entries)
    link.adopt([pb.Admission.FromString(each) for each in own["admitted"]])
    present = read(link.call(leaving=False).result())
    link.complete()
    return present


def _provide_state(
    link: BoundaryLink,
    order: Sequence[int],
    newcomer: Process,
    last: StartedRollCall,
    save: Callable[[], Mapping[str, object]],
) -> None:
    """Waits until the newcomer has taken part in the last roll call or is lost. Gives it the state, if that is up to
    this rank: to the first donor that is not lost."""
    asked: int | None = None
    while not last.done:
        donor = next((rank for rank in order if not link.is_lost(rank)), link.rank)
        if donor != asked and donor == link.rank:
            _give(link, Pair(donor, newcomer), save)
        asked = donor
        link.wait(lambda donor=donor: last.done or link.is_lost(donor))  # type: ignore[misc]


def _give(link: BoundaryLink, pair: Pair, save: Callable[[], Mapping[str, object]]) -> None:
    try:
        packed = _packed(link, save)
    except InvalidError as error:
        # The members go on: their state is as it was.
        _log.error("%s cannot give its state to rank %d: %s", link.title, pair.newcomer.rank, error)
        refuse(link, pair, str(error))
        return
    give(link, pair, packed, link.weights_total or ())


def _packed(link: BoundaryLink, save: Callable[[], Mapping[str, object]]) -> Packed:
    own = {"admitted": [each.SerializeToString() for each in link.admitted]}
    return pack({_OWN: own, **save()})
