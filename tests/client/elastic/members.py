"""The members of an elastic job without any network: roll calls and transfers within one process, and losses."""

import threading
from collections.abc import Callable, Sequence

from psum.client.core.buffers import Memory, flat
from psum.client.core.roll_call import Process, Row, Table, contribution
from psum.client.future import Outcome, wait_for, wake
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import WorkerLostError

#: How long anything may take here.
PATIENCE_SECONDS = 20.0


class Killed(BaseException):
    """Ends the thread of a rank that is lost."""


class World:
    """What aggregators do: sums of those who are not lost, and broadcasts between two ranks."""

    def __init__(self, members: Sequence[int]) -> None:
        self.lock = threading.RLock()
        self.members = set(members)
        """The ranks for which roll calls wait."""
        self.lost: set[int] = set()
        self.candidate: Process | None = None
        self.admitted = threading.Event()
        self.chunks: list[tuple[str, int]] = []
        """The name of each key that a donor has sent something on, and the donor."""
        self.on_chunk: Callable[[int, int], None] = lambda donor, number: None
        """Called with each chunk: which donor sends it, and how many it has sent before."""
        self._calls: dict[int, dict[int, tuple[Table, Outcome]]] = {}
        self._given: dict[tuple[str, int], dict[int, tuple[Memory, Outcome]]] = {}

    def lose(self, rank: int) -> None:
        """Loses a rank, as if its process was killed."""
        with self.lock:
            self.lost.add(rank)
            self._settle()
        wake()

    def leave(self, rank: int) -> None:
        with self.lock:
            self.members.discard(rank)
            self._settle()

    def call(self, number: int, rank: int, table: Table) -> Outcome:
        future = Outcome()
        with self.lock:
            self._calls.setdefault(number, {})[rank] = table, future
            self._settle()
        return future

    def give(self, name: str, round: int, rank: int, memory: Memory, donor: int) -> Outcome:
        future = Outcome()
        with self.lock:
            self._given.setdefault((name, round), {})[rank] = memory, future
            self._settle(donor)
        return future

    def _settle(self, donor: int | None = None) -> None:
        for number, rows in list(self._calls.items()):
            if rows.keys() >= self.members - self.lost:
                del self._calls[number]
                total = sum(table for table, _ in rows.values())
                for table, future in rows.values():
                    table[...] = total
                    future(None)
        for which, sides in list(self._given.items()):
            giver, receiver = map(int, which[0].split("→")[0].split(","))
            gone = {giver, receiver} & self.lost
            if len(sides) < 2 and not gone:
                continue
            del self._given[which]
            if giver in gone and giver not in sides:
                for _, future in sides.values():
                    future(WorkerLostError("the root is lost", ranks=[giver]))
                continue
            if len(sides) == 2:
                target = flat(sides[receiver][0])
                target[:] = flat(sides[giver][0])
            for _, future in sides.values():
                future(None)


class Member:
    """One process of a job; see Link. Its thread ends with Killed when it is lost."""

    def __init__(self, world: World, rank: int, *, newcomer: bool = False) -> None:
        self.rank = rank
        self.title = f"rank {rank}"
        self.weights_total: Sequence[int] | None = None
        self.admitted: list[pb.Admission] = []
        self.adopted: list[pb.Admission] = []
        self.joining = newcomer
        self.completed = 0
        self._world = world
        self._calls = 0
        self._rounds: dict[str, int] = {}
        self._sent = 0
        self._was_lost = False

    def die(self) -> None:
        """Loses this very process."""
        self._was_lost = True
        self._world.lose(self.rank)
        raise Killed

    def call(self, *, leaving: bool, ready: bool = True) -> "Call":
        self._check()
        candidate = self._world.candidate if ready else None
        table = contribution(4, self.rank, Row(100 + self.rank, leaving, ready, candidate))
        self._calls += 1
        return Call(self, self._world.call(self._calls, self.rank, table), table)

    def give(self, name: str, memory: Memory, giver: int, receiver: int, *, steers: bool = False) -> Outcome:
        self._check()
        name = f"{giver},{receiver}→{name}"
        if giver == self.rank:
            self._world.on_chunk(giver, self._sent)
            self._sent += 1
        self._check()
        self._world.chunks.append((name, self.rank))
        self._rounds[name] = round = self._rounds.get(name, -1) + 1
        return self._world.give(name, round, self.rank, memory, giver)

    def wait(self, predicate: Callable[[], bool]) -> None:
        done = wait_for(lambda: predicate() or self._was_lost or self.rank in self._world.lost, PATIENCE_SECONDS)
        assert done, "nothing has happened"
        self._check()

    def is_lost(self, rank: int) -> bool:
        return rank in self._world.lost

    def admit(self, process: Process) -> int:
        with self._world.lock:
            self._world.lost.discard(process.rank)
            self._world.members.add(process.rank)
            self._world.candidate = None
        self.admitted = [pb.Admission(rank=process.rank, generation=1, incarnation=process.incarnation)]
        self._world.admitted.set()
        return 1

    def complete(self) -> None:
        self.completed += 1

    def wait_for_admission(self) -> None:
        assert self._world.admitted.wait(PATIENCE_SECONDS)
        self._calls = 1

    def adopt_weights(self, total: Sequence[int]) -> None:
        self.weights_total = total

    def adopt(self, admitted: Sequence[pb.Admission]) -> None:
        self.adopted = list(admitted)

    def _check(self) -> None:
        if self._was_lost or (self.rank in self._world.lost):
            raise Killed


class Call:
    """See RollCall."""

    def __init__(self, member: Member, future: Outcome, table: Table) -> None:
        self._member = member
        self._future = future
        self._table = table

    @property
    def done(self) -> bool:
        return self._future.done()

    def result(self) -> Table:
        self._member.wait(self._future.done)
        self._future.result()
        return self._table
