"""A pool of stages: arrays in host memory that stand in for arrays on devices."""

import dataclasses
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Final

from psum.client import Block, Client
from psum.client.per_client import PerClient
from psum.client.weak_allocator import weak_allocator
from psum.mxnet.arguments import Arrays
from psum.mxnet.arrays.dlpack import array_at
from psum.mxnet.compat import ENGINE_IS_NAIVE
from psum.mxnet.engine import operations
from psum.mxnet.staging.host_memory import HostMemory

#: Why a worker cannot contribute to a round, if MXNet does not tell.
VALUE_FAILED: Final = "an MXNet operation that computes its value failed there"


@dataclasses.dataclass(frozen=True, slots=True)
class StageStatistics:
    """The number of stages of a pool.

    Attributes:
        allocated: Those that were made and not dropped.
        in_use: Those of them that are lent to keys.
    """

    allocated: int
    in_use: int


class _Stage:
    """One array, and the turns at it since it was lent.

    Args:
        like: Arrays of its shape and type.
    """

    def __init__(self, like: Arrays) -> None:
        self.kind = like.shape, like.element_type
        self.memory = HostMemory(like.nbytes)
        self.array = array_at(self.memory.address, like.shape, like.element_type)
        self.taken = 0
        """The number of turns that were taken."""
        self.ended = 0
        """The number of those that have ended."""
        self.succeeded = 0
        """The number of those that succeeded."""
        self.failure: str | None = None
        """Why the first turn that failed did so."""
        self.in_engine = False
        """Whether the engine may have operations on the array, also after the turns."""


class Turn:
    """The right to use a stage once, in the order of the turns. Give it back exactly once.

    Attributes:
        array: The array.
        memory: Its memory. If the turn is `fresh`, prepare it before using the array.
        fresh: Whether this is the first use of the array.
    """

    __slots__ = ("_lent_to", "_number", "_stage", "fresh")

    def __init__(self, stage: _Stage, lent_to: Hashable, *, fresh: bool) -> None:
        self._stage = stage
        self._lent_to = lent_to
        self._number = stage.taken
        self.fresh = fresh

    @property
    def array(self) -> Any:
        return self._stage.array

    @property
    def memory(self) -> HostMemory:
        return self._stage.memory

    @property
    def in_engine(self) -> bool:
        """Whether MXNet's engine may have operations on the array that were queued in earlier turns."""
        return self._stage.in_engine

    def left_engine(self) -> None:
        """Says that the engine has ended all operations on the array."""
        self._stage.in_engine = False

    @property
    def is_first(self) -> bool:
        """Whether no earlier turn at the stage may still be under way."""
        return self._number == 0

    def failure(self) -> str | None:
        """Returns why the stage cannot be used; None if it can. Call it when the engine has finished all earlier turns.

        If the engine has finished a turn that was not given back, it has skipped that turn, because its value failed.
        """
        if self._stage.succeeded == self._number:
            return None
        return self._stage.failure or VALUE_FAILED


class StagePool:
    """Lends stages: arrays that aggregators on this host read from, and that GPUs copy from and to directly.

    The pool lends a stage to a key. Meanwhile the key's next rounds take their turns at the same stage, however many
    are queued: the rounds of a key come one after another, and the engine orders the uses of the array. After that the
    stage is idle, and any key of the same shape and type may get it. Copies out of it may still be queued; the engine
    makes the next user wait for them.

    So there are never more stages than keys, and of each shape and type never more than keys that were under way at
    once. (Here, pushpull and broadcast of one name are two keys.) A stage on which an operation failed is not lent
    again, because an aggregator may still read it. Its key has failed for good and takes no other stage. The
    NaiveEngine does not order operations: there, each round of a key that several threads have under way has a stage of
    its own.

    Args:
        allocate: Allocates memory that aggregators on this host read from. It returns None if there is none; then the
            stage has memory of this process only.
    """

    def __init__(self, allocate: Callable[[int], Block | None] = lambda size: None) -> None:
        self.allocate = allocate
        self._idle: dict[Hashable, deque[_Stage]] = {}
        """By shape and type. The stage that is idle longest comes first: the copies out of it are probably done."""
        self._lent: dict[Hashable, _Stage] = {}
        """By key, shape and type."""
        self._all: list[_Stage] = []
        """Every stage ever made: the engine may have queued copies out of one that is no longer lent."""
        weakref.finalize(self, _orphans.extend, self._all).atexit = False
        self._allocated = 0
        self._in_use = 0
        self._returned: deque[Turn] = deque()
        """Turns that were given back and not yet accounted for."""
        # Reentrant: a signal's handler may take a turn anywhere. Ending an operation never waits for this lock, because
        # the handler may wait for that operation.
        self._lock = threading.RLock()

    @staticmethod
    def of(client: Client) -> "StagePool":
        """Returns the pool of all stores of a client. A new store can use the stages of an old one."""
        return _pools.of(client)

    def __repr__(self) -> str:
        return f"<StagePool {self.statistics()}>"

    def take(self, key: Hashable, like: Arrays, *, for_engine: bool = True) -> Turn:
        """Takes a turn at a stage, whose content is undefined.

        For one key, take a turn and queue its operations in the engine before taking the next turn.

        Args:
            key: The key that uses the stage.
            like: Arrays of the shape and type of the stage.
            for_engine: Whether the engine is to use the array. If not, the turn's memory may be used once the engine
                has ended the operations of earlier turns (`in_engine`).
        """
        kind = like.shape, like.element_type
        lent_to = key, kind
        self._settle()
        with self._lock:
            stage = None if ENGINE_IS_NAIVE else self._lent.get(lent_to)
            if stage is None:
                idle = self._idle.get(kind)
                stage = idle.popleft() if idle else None
                fresh = stage is None
                if stage is None:
                    stage = _Stage(like)
                    self._all.append(stage)
                    self._allocated += 1
                self._in_use += 1
                self._lent[lent_to] = stage
            else:
                fresh = False
            if for_engine:
                stage.in_engine = True
            turn = Turn(stage, lent_to, fresh=fresh)
            stage.taken += 1
        self._settle()
        return turn

    def give_back(self, turn: Turn, failure: str | None = None) -> None:
        """Gives a turn back: the operation that used the stage has run, or never will.

        Args:
            turn: The turn.
            failure: Why the operation failed; None if it succeeded.
        """
        stage = turn._stage
        # Counted at once: the engine may check the next turn before this one is accounted for. It needs no lock: no two
        # turns at a stage succeed at the same time.
        if failure is None:
            stage.succeeded += 1
        else:
            stage.failure = stage.failure or failure
        self._returned.append(turn)
        self._settle()

    def statistics(self) -> StageStatistics:
        """Returns the numbers of now."""
        self._settle()
        with self._lock:
            return StageStatistics(self._allocated, self._in_use)

    def _settle(self) -> None:
        """Accounts for the turns that were given back. If another thread has the lock, that thread does it."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                while self._returned:
                    self._account_for(self._returned.popleft())
            finally:
                self._lock.release()

    def _account_for(self, turn: Turn) -> None:
        stage, lent_to = turn._stage, turn._lent_to
        stage.ended += 1
        if stage.ended != stage.taken:
            return
        if self._lent.get(lent_to) is stage:
            del self._lent[lent_to]
        self._in_use -= 1
        if stage.failure is not None:
            self._allocated -= 1
            return
        stage.taken = stage.ended = stage.succeeded = 0
        self._idle.setdefault(stage.kind, deque()).append(stage)


_orphans: Final[list[_Stage]] = []
"""Stages whose pool is gone. The next pool frees them: the garbage collector may have ended their pool in the middle of
anything, where it is not safe."""


def _let_go_of_orphans() -> None:
    while _orphans:
        stage = _orphans.pop()

        def let_go(operation: operations.Operation, stage: _Stage = stage) -> None:
            # This function keeps the stage until the engine has finished with it.
            operation.complete()

        operations.push(stage.array, operations.Operation(let_go, operations.ignore), always=True)


def _make_pool(client: Client) -> StagePool:
    _let_go_of_orphans()
    return StagePool(weak_allocator(client))


_pools: Final = PerClient(_make_pool)
