"""The trivial model: what each rank contributed, what each round's sum has to be, and who was told what."""

import dataclasses
import functools
import itertools
from collections import defaultdict

import numpy as np
import numpy.typing as npt

from psum.client import ElementType, Operation, PsumError, Ticket

Values = npt.NDArray[np.generic]
Place = tuple[str, Operation]
"""A key under one operation."""


@dataclasses.dataclass(eq=False)
class Use:
    """One operation of one worker process.

    Attributes:
        rank: The worker's.
        number: Which process of this rank it is.
        place: The key and what is done with it.
        round: Its round.
        kind: The type of its elements.
        array: Where the value is and the result goes.
        ends: What it was told at its end: exactly one thing, in the end.
        forgotten: Whether its process was killed.
    """

    rank: int
    number: int
    place: Place
    round: int
    kind: ElementType
    ticket: Ticket
    array: Values
    ends: list[PsumError | None] = dataclasses.field(default_factory=list)
    forgotten: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank}'s {self.place[1].name.lower()} of {self.place[0]!r} round {self.round}"


class Ledger:
    """All operations of a history.

    Args:
        workers: The number of ranks.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.uses: list[Use] = []
        self.deliveries = 0
        self.failures = 0
        self._agreed: dict[tuple[Place, int], Values] = {}
        """The sum that the first rank got."""
        self._processes: dict[tuple[Place, int, int], set[int]] = defaultdict(set)
        """The processes that contributed for a rank, by place, round and rank."""
        self._excuses: dict[Place | None, set[type[PsumError]]] = defaultdict(set)
        self._forbidden: dict[Place, int] = {}

    @property
    def strict(self) -> bool:
        """Whether no operation may fail."""
        return not self._excuses

    @property
    def open(self) -> list[Use]:
        """The operations that were started and have not ended, but for those of processes that were killed."""
        return [use for use in self.uses if not use.ends and not use.forgotten]

    def excuse(self, *errors: type[PsumError], place: Place | None = None) -> None:
        """Operations, or those on one key, may end with these errors from now on."""
        self._excuses[place].update(errors)

    def forbid(self, place: Place, round: int) -> None:
        """No rank may get a result of a key from this round on."""
        self._forbidden[place] = round

    def forget(self, rank: int) -> None:
        """A rank's process was killed."""
        for use in self.uses:
            use.forgotten = use.forgotten or use.rank == rank
        # What only the dead were told binds nobody.
        known = {(use.place, use.round) for use in self.uses if use.ends == [None] and not use.forgotten}
        self._agreed = {place: total for place, total in self._agreed.items() if place in known}

    def begin(self, use: Use) -> None:
        """An operation is started."""
        self.uses.append(use)
        self._processes[use.place, use.round, use.rank].add(use.number)

    def end(self, use: Use, error: PsumError | None) -> None:
        """An operation has ended, says the client."""
        use.ends.append(error)
        assert len(use.ends) == 1, f"{use} ended twice: {use.ends}"
        if error is not None:
            self.failures += 1
            allowed = self._excuses.get(None, set()) | self._excuses.get(use.place, set())
            assert type(error) in allowed, f"{use} failed for no reason: {error!r}"
            return
        self.deliveries += 1
        forbidden = self._forbidden.get(use.place)
        assert forbidden is None or use.round < forbidden or not use.array.size, f"{use} succeeded after an abort"
        agreed = self._agreed.get((use.place, use.round))
        if agreed is None:
            agreed = self._agreed[use.place, use.round] = use.array.copy()
            sums = self._sums(use)
            assert any(np.array_equal(agreed.view(np.uint8), total.view(np.uint8)) for total in sums), (
                f"{use} got {agreed[:8]}, which is no sum of what the ranks contributed; expected {sums[0][:8]}"
            )
        assert np.array_equal(agreed.view(np.uint8), use.array.view(np.uint8)), (
            f"{use} got {use.array[:8]}, another rank had got {agreed[:8]}"
        )
        # The memory is the program's again, which may do with it what it likes.
        use.array.view(np.uint8)[:] = 0xEE

    def _sums(self, use: Use) -> list[Values]:
        """What may come of a round: one process's value for each rank that has to give one."""
        ranks = range(1 if use.place[1] is Operation.BROADCAST else self.workers)
        given = [sorted(self._processes[use.place, use.round, rank]) for rank in ranks]
        name, elements = use.place[0], len(use.array)
        sums = []
        for numbers in itertools.product(*given):
            values = [value(name, elements, use.kind, use.round, r, n) for r, n in zip(ranks, numbers, strict=True)]
            with np.errstate(all="ignore"):
                sums.append(functools.reduce(np.add, values))
        assert sums or not elements, f"{use} has a result, though ranks have not contributed: {given}"
        return sums or [np.empty(0, use.kind.numpy)]


@functools.lru_cache(maxsize=4096)
def value(name: str, elements: int, kind: ElementType, round: int, rank: int, number: int) -> Values:
    """What a process contributes to a round; the order in which single precision is added shows in the sum."""
    places = np.arange(elements, dtype=np.int64)
    mixed = (places * 7919 + round * 104_729 + rank * 1_299_709 + number * 15_485_863 + len(name) * 31) % 65_521
    if kind is ElementType.INT32:
        return (mixed * 65_537).astype(np.int32)
    return ((mixed - 32_000) * 10.0 ** ((places + rank) % 9 - 4)).astype(np.float32)
