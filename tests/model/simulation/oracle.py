"""The reference model: each rank's contributions, each round's expected sum, and the result of each operation."""

import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set

import numpy as np
import numpy.typing as npt

from psum.client import (
    DisagreementError,
    ElementType,
    FaultError,
    Operation,
    PsumError,
    TakenError,
    Ticket,
    WorkerLostError,
)
from simulation import keys
from simulation.groups import Tree
from simulation.keys import KeyOperation

Values = npt.NDArray[np.generic]


@dataclasses.dataclass(eq=False)
class Call:
    """One operation of one worker process.

    Attributes:
        rank: The worker's rank.
        number: Index of the process among those of this rank.
        key: The key and its operation.
        round: The round.
        kind: The element type.
        ticket: The client's ticket.
        array: Holds the contribution, and receives the result.
        ends: The reported outcomes (None for success). In the end there must be exactly one.
        process_killed: Whether its process was killed.
    """

    rank: int
    number: int
    key: KeyOperation
    round: int
    kind: ElementType
    ticket: Ticket
    array: Values
    ends: list[PsumError | None] = dataclasses.field(default_factory=list)
    process_killed: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank}'s {self.key[1].name.lower()} of {self.key[0]!r} round {self.round}"


class Oracle:
    """Records all operations of a history and checks their results.

    Args:
        workers: Number of ranks with which the job begins.
        tree: The order of addition.
        excused: Returns the ranks that a process which was started again may blame too, if they do not come back.
        elastic: Whether the job is elastic: sums may lack ranks that are lost.
        spares: Number of further ranks that may join it.

    Attributes:
        calls: All started operations.
        deliveries: Number of successful operations.
        failures: Number of failed operations.
    """

    def __init__(
        self, workers: int, tree: Tree, excused: Callable[[], Set[int]], *, elastic: bool = False, spares: int = 0
    ) -> None:
        self.workers = workers
        self._excused = excused
        self._tree = tree
        self._elastic = elastic
        self._ranks = range(workers + spares)
        self.excluded: set[int] = {rank for rank in self._ranks if rank >= workers}
        """The ranks of an elastic job that are lost, were killed, or have not joined. Nothing is expected of them."""
        self._begins: dict[int, Mapping[KeyOperation, int]] = {}
        """The first rounds of ranks that have joined, by key."""
        self._ever_lost: set[int] = set()
        """The ranks that were ever lost. Broadcasts from them may have failed for good."""
        self._counts: dict[tuple[KeyOperation, int], Mapping[int, int]] = {}
        """The counts of contributors by shard that the first successful rank of an elastic job got."""
        self.calls: list[Call] = []
        self.deliveries = 0
        self.failures = 0
        self._agreed: dict[tuple[KeyOperation, int], Values] = {}
        """The sum that the first successful rank got."""
        self._processes: dict[tuple[KeyOperation, int, int], set[int]] = defaultdict(set)
        """The processes that contributed for a rank, by key, round and rank."""
        self._allowed: dict[KeyOperation | None, set[type[PsumError]]] = defaultdict(set)
        self._forbidden: dict[KeyOperation, int] = {}
        self._blamed: set[int] | None = None
        self._together = False
        self._groups: set[int] = set()
        self._replaced = False
        self.relay_ended = False
        """Whether some relay ended. Its owners then wait for its ranks, and name them all."""

    @property
    def strict(self) -> bool:
        """Whether no operation is allowed to fail."""
        return not self._allowed

    @property
    def open(self) -> list[Call]:
        """Operations that were started and have not ended, except those of killed processes."""
        return [call for call in self.calls if not call.ends and not call.process_killed]

    def allow(self, *errors: type[PsumError], key: KeyOperation | None = None) -> None:
        """Allow operations to fail with these errors from now on; with `key`, only operations on that key."""
        self._allowed[key].update(errors)

    def blame(
        self, ranks: Iterable[int], groups: Iterable[int] = (), *, together: bool = False, replaced: bool = False
    ) -> None:
        """Expect errors about lost workers to name some of these ranks and no others; with `together`, all of them.

        Args:
            ranks: The ranks.
            groups: The ranks that have a relay in common with them. After a restart of the relay, only the workers
                themselves can tell which ranks its group has. So it is not known then which of them are missing.
            together: Whether all of the ranks must be named.
            replaced: Whether other processes take their places. Their relay is then another member, and is named.
        """
        self._blamed, self._groups, self._together, self._replaced = set(ranks), set(groups), together, replaced

    def forbid_results(self, key: KeyOperation, round: int) -> None:
        """Forbid results for a key from this round on."""
        self._forbidden[key] = round

    def worker_killed(self, rank: int) -> None:
        """Record that a rank's process was killed."""
        for call in self.calls:
            call.process_killed = call.process_killed or call.rank == rank
        # A sum that only killed processes received does not bind the others.
        known = {(call.key, call.round) for call in self.calls if call.ends == [None] and not call.process_killed}
        self._agreed = {key: total for key, total in self._agreed.items() if key in known}

    def begin(self, call: Call) -> None:
        """Record that an operation was started."""
        self.calls.append(call)
        call.process_killed |= self._elastic and call.rank in self.excluded
        self._processes[call.key, call.round, call.rank].add(call.number)

    def end(self, call: Call, error: PsumError | None) -> None:
        """Record that the client reported the end of an operation, and check its result."""
        call.ends.append(error)
        assert len(call.ends) == 1, f"{call} ended twice: {call.ends}"
        if self._elastic and (call.rank in self.excluded or call.process_killed):
            # What it gets binds nobody, and it must learn sometime that it is excluded.
            self.failures += error is not None
            return
        if error is not None and self.may_fail(call.rank, call.key):
            # A process that has joined since does not know that the key has failed. It begins with the first round.
            assert isinstance(error, WorkerLostError | DisagreementError), f"{call} failed with {error!r}"
            return
        if error is not None:
            self.failures += 1
            allowed = self._allowed.get(None, set()) | self._allowed.get(call.key, set())
            assert type(error) in allowed, f"{call} failed with an error that is not allowed: {error!r}"
            if self._blamed is not None and isinstance(error, WorkerLostError | TakenError):
                assert self._names_the_right_ranks(error), (
                    f"{call} failed with an error that names the ranks {error.ranks} instead of {self._blamed}: {error}"
                )
            return
        self.deliveries += 1
        forbidden = self._forbidden.get(call.key)
        assert forbidden is None or call.round < forbidden or not call.array.size, f"{call} succeeded after an abort"
        agreed = self._agreed.get((call.key, call.round))
        counts = call.ticket.contributors or {}
        if self._elastic:
            assert counts == self._counts.setdefault((call.key, call.round), counts), (
                f"{call} has the counts {counts}, and another rank has {self._counts[call.key, call.round]}"
            )
        if self._elastic and agreed is None:
            agreed = self._agreed[call.key, call.round] = call.array.copy()
            self._check_shards(call, counts)
        elif agreed is None:
            agreed = call.array.copy()
            if not call.process_killed:
                # A process that was told to end still receives results, which do not bind the others either.
                self._agreed[call.key, call.round] = agreed
            sums = self._sums(call)
            assert any(np.array_equal(agreed.view(np.uint8), total.view(np.uint8)) for total in sums), (
                f"{call} got {agreed[:8]}, which is not a sum of the ranks' contributions; expected {sums[0][:8]}"
            )
        assert np.array_equal(agreed.view(np.uint8), call.array.view(np.uint8)), (
            f"{call} got {call.array[:8]}, but another rank got {agreed[:8]}"
        )
        # The memory belongs to the program again. Overwrite it, as a program might.
        call.array.view(np.uint8)[:] = 0xEE

    def exclude(self, rank: int) -> None:
        """Record that a rank of an elastic job is lost."""
        self.excluded.add(rank)
        self._ever_lost.add(rank)
        self.worker_killed(rank)
        self._counts = {key: counts for key, counts in self._counts.items() if key in self._agreed}

    def include(self, rank: int, begins: Mapping[KeyOperation, int]) -> None:
        """Record that a process has joined. From these rounds on all sums must contain it."""
        self.excluded.discard(rank)
        self._begins[rank] = begins

    def may_fail(self, rank: int, key: KeyOperation) -> bool:
        """Return whether an operation may fail: its rank is lost, or a root is or was for which nobody stands in."""
        lost_root = key[1] is Operation.BROADCAST and keys.root_of(key) in self._ever_lost
        return rank in self.excluded or (lost_root and not keys.stands_in(key))

    def _check_shards(self, call: Call, counts: Mapping[int, int]) -> None:
        """Assert that each shard is the sum of as many ranks as its count says, of all survivors among them."""
        name, key = call.key[0], call.ticket.key
        given = {
            rank: [value(name, len(call.array), call.kind, call.round, rank, number) for number in sorted(numbers)]
            for rank in self._ranks
            if (numbers := self._processes[call.key, call.round, rank])
        }
        users, root = keys.ranks_of(call.key) or self._ranks, keys.root_of(call.key)
        nominal = len(keys.ranks_of(call.key)) or self.workers
        must = {
            rank
            for rank in users
            if rank not in self.excluded and call.round >= self._begins.get(rank, {}).get(call.key, 0)
        }
        for shard in key.shards:
            part = slice(shard.start // call.array.itemsize, shard.stop // call.array.itemsize)
            if call.key[1] is Operation.BROADCAST:
                # If the root is lost, that of one of the others, which may differ from shard to shard.
                others = root not in must and keys.stands_in(call.key)
                possible: list[tuple[int, ...]] = [(rank,) for rank in given if rank == root or others]
            else:
                possible = [
                    ranks
                    for ranks in itertools.combinations(sorted(given), counts.get(shard.index, nominal))
                    if must.issubset(ranks)
                ]
            with np.errstate(all="ignore"):
                sums = [
                    functools.reduce(np.add, [each[part] for each in values])
                    for ranks in possible
                    for values in itertools.product(*[given[rank] for rank in ranks])
                ]
            got = call.array[part]
            assert any(np.array_equal(got.view(np.uint8), total.view(np.uint8)) for total in sums), (
                f"{call} got {got[:8]} for shard {shard.index}, which is no sum of {possible}; counts {counts}"
            )

    def _names_the_right_ranks(self, error: FaultError) -> bool:
        named = set(error.ranks)
        assert self._blamed is not None
        if "started again" in str(error) and (self._groups or self._excused()):
            known = bool(named) or "of a relay's group" in str(error)
            return known and named <= self._blamed | self._groups | self._excused()
        if (self._replaced or self.relay_ended) and "relay on" in str(error):
            return self._blamed <= named <= self._blamed | self._groups
        return named == self._blamed if self._together else bool(named) and named <= self._blamed

    def _sums(self, call: Call) -> list[Values]:
        """Return the possible sums of a round: for each contributing rank, one of its processes' values."""
        ranks, tree = range(self.workers), self._tree
        if call.key[1] is Operation.BROADCAST:
            ranks, tree = range(1), (0,)
        given = [sorted(self._processes[call.key, call.round, rank]) for rank in ranks]
        name, elements = call.key[0], len(call.array)
        sums = []
        for numbers in itertools.product(*given):
            values = [value(name, elements, call.kind, call.round, r, n) for r, n in zip(ranks, numbers, strict=True)]
            with np.errstate(all="ignore"):
                sums.append(add(tree, values))
        assert sums or not elements, f"{call} has a result although some ranks have not contributed: {given}"
        return sums or [np.empty(0, call.kind.numpy)]


def add(tree: Tree, values: Sequence[Values]) -> Values:
    """Add up values by rank in the order that a tree says."""
    members = [values[member] if isinstance(member, int) else add(member, values) for member in tree]
    return functools.reduce(np.add, members)


@functools.lru_cache(maxsize=4096)
def value(name: str, elements: int, kind: ElementType, round: int, rank: int, number: int) -> Values:
    """Return a process's contribution to a round. Float32 values make the order of addition visible in the sum."""
    positions = np.arange(elements, dtype=np.int64)
    mixed = (positions * 7919 + round * 104_729 + rank * 1_299_709 + number * 15_485_863 + len(name) * 31) % 65_521
    if kind is ElementType.INT32:
        return (mixed * 65_537).astype(np.int32)
    return ((mixed - 32_000) * 10.0 ** ((positions + rank) % 9 - 4)).astype(np.float32)
