"""One member of a job, as its hello introduced it: a worker, or a relay that stands for several ranks."""

import dataclasses
from collections import deque
from collections.abc import Mapping

from psum.aggregator.core.held import Credited, Held
from psum.aggregator.core.roster import ranks_of
from psum.v1 import aggregator_pb2 as pb

Process = tuple[int, int]
"""A process behind a relay of an elastic job: its incarnation, and its generation among the processes of its rank."""


def processes_of(hello: pb.Hello) -> dict[int, Process]:
    """The processes that a relay of an elastic job stands for, by rank. Empty for others."""
    processes = zip(hello.incarnations, hello.generations, strict=True)
    return dict(zip(hello.ranks, processes, strict=False))


def set_processes(hello: pb.Hello, processes: Mapping[int, Process]) -> None:
    """Changes for which ranks a relay of an elastic job stands, and by which processes."""
    ranks = sorted(processes)
    hello.ranks[:] = ranks
    hello.incarnations[:] = [processes[rank][0] for rank in ranks]
    hello.generations[:] = [processes[rank][1] for rank in ranks]


def same_process(known: pb.Hello, hello: pb.Hello) -> bool:
    """Whether two hellos are of one process, or of relays that stand for a process in common.

    The ranks of a relay in an elastic job may change. So its processes are compared one by one.
    """
    if hello.incarnations:
        return not processes_of(known).items().isdisjoint(processes_of(hello).items())
    return bool(hello.incarnation) and known.incarnation == hello.incarnation


@dataclasses.dataclass(slots=True)
class Worker:
    """One member of a job. Times are those of the clock that the shell passes to the job.

    Attributes:
        hello: Its hello. The ranks in a relay's hello change with its group, in an elastic job.
        peer: The address that it is connected from.
        joined: When it joined.
        last_heard: When its last message came.
        connected: Whether its stream is open.
        closed: Whether its last stream was closed, as by the end of its process, and not given up as silent.
        left: Whether it said goodbye.
        taking_leave: Whether it said goodbye on its present connection.
        reaches_all: Whether it has a stream to each aggregator, as far as it has said. Only in elastic jobs.
        contributed: Whether it took part in any round. A worker that vanished before may be replaced.
        needed_by: After its goodbye, the members that may lack a sum that it has, or do not know of the goodbye.
        release_at: When it is released at the latest; None before its goodbye and after its release.
        received_bytes: Payload received from it.
        sent_bytes: Payload sent to it.
        uncredited: Contributions that count against its credit, the oldest first.
        credited: Contributions whose credit was returned while their round waits.
    """

    hello: pb.Hello
    peer: str
    joined: float
    last_heard: float
    connected: bool = True
    closed: bool = False
    left: bool = False
    taking_leave: bool = False
    reaches_all: bool = True
    contributed: bool = False
    needed_by: set[int] = dataclasses.field(default_factory=set)
    release_at: float | None = None
    received_bytes: int = 0
    sent_bytes: int = 0
    uncredited: deque[Held] = dataclasses.field(default_factory=deque)
    credited: Credited = dataclasses.field(default_factory=Credited)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that it stands for, in ascending order."""
        return ranks_of(self.hello)

    @property
    def processes(self) -> dict[int, Process]:
        """The processes behind a relay of an elastic job, by rank."""
        return processes_of(self.hello)

    @processes.setter
    def processes(self, processes: Mapping[int, Process]) -> None:
        set_processes(self.hello, processes)

    @property
    def is_relay(self) -> bool:
        """Whether it is a relay, not a worker."""
        return bool(self.hello.ranks)

    def forget_credit(self) -> None:
        """Forgets all contributions whose credit it may still get, or has got early."""
        self.uncredited.clear()
        self.credited.clear()

    def departures(self) -> tuple[pb.Departure, ...]:
        """What the others are told when it leaves: in an elastic job, each process behind a relay for itself."""
        if processes := self.processes:
            return tuple(pb.Departure(ranks=[rank], incarnation=number) for rank, (number, _) in processes.items())
        return (pb.Departure(ranks=self.ranks, incarnation=self.hello.incarnation),)

    def __str__(self) -> str:
        return f"{self.hello.worker or 'unnamed worker'} ({self.peer})"
