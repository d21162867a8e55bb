"""Arrays in host memory that stand in for those of devices, lent again and again."""

import dataclasses
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Final

from psum.client import Block, Client
from psum.mxnet.arguments import Arrays
from psum.mxnet.arrays.dlpack import array_at
from psum.mxnet.compat import ENGINE_IS_NAIVE
from psum.mxnet.engine import operations
from psum.mxnet.staging.host_memory import HostMemory

#: Why a worker cannot contribute to a round, where MXNet cannot say it.
VALUE_FAILED: Final = "an MXNet operation that computes its value failed there"


@dataclasses.dataclass(frozen=True, slots=True)
class StageStatistics:
    """How many arrays a pool holds.

    Attributes:
        allocated: Those that it has made and not dropped.
        in_use: Those of them that are lent.
    """

    allocated: int
    in_use: int


class _Stage:
    """One array, and the turns at it since it was lent.

    Args:
        like: Of which shape and type it is.
    """

    def __init__(self, like: Arrays) -> None:
        self.kind = like.shape, like.element_type
        self.memory = HostMemory(like.nbytes)
        self.array = array_at(self.memory.address, like.shape, like.element_type)
        self.taken = 0
        """How many turns were taken."""
        self.ended = 0
        """How many of them have ended."""
        self.succeeded = 0
        """How many of those well."""
        self.failure: str | None = None
        """Why the first that did not end well did not."""


class Turn:
    """The right to use a stage once, in the order of the turns. To be given back exactly once.

    Attributes:
        array: The array.
        memory: What it lies in, to be prepared before the array is used where the turn is `fresh`.
        fresh: Whether it is the first use of the array.
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
    def is_first(self) -> bool:
        """Whether nobody else's turn at the stage may still go on."""
        return self._number == 0

    def obstacle(self) -> str | None:
        """Why the stage cannot be used, None where it can. To be asked when all earlier turns are over in the engine.

        A turn that is over there and was not given back is one that the engine has skipped, since its value failed.
        """
        if self._stage.succeeded == self._number:
            return None
        return self._stage.failure or VALUE_FAILED


class StagePool:
    """Lends stages: arrays that aggregators on this host read from, and that a GPU copies from and to without a detour.

    A stage is lent to a key. While it is, the key's next rounds take their turns at the same stage, however many are
    queued ahead: a key's rounds come one after another in any case, and the engine orders what is done with the array.
    Then it is idle, and any key of the same shape and type may have it. Copies out of it may still be queued, but the
    engine has whoever uses it next wait for them.

    So there are never more stages than keys, nor more of a shape and type than there were ever such keys under way at
    once, whatever the pattern of the calls. (For this, pushpull and broadcast of one name are two keys.) A stage on
    which an operation failed is not lent again: what an aggregator may read yet must stay as it is. Its key, which has
    failed for good, does not ask for another. With the NaiveEngine, which does not order anything, each of a key's
    rounds that several threads have under way at once has a stage of its own.

    Args:
        allocate: Gives memory that aggregators on this host read from, None where there is none: then a stage lies in
            memory of this process's own.
    """

    def __init__(self, allocate: Callable[[int], Block | None] = lambda size: None) -> None:
        self.allocate = allocate
        self._idle: dict[Hashable, deque[_Stage]] = {}
        """By shape and type, those that have waited longest first: most of the copies out of them are done."""
        self._lent: dict[Hashable, _Stage] = {}
        """By key, shape and type."""
        self._all: list[_Stage] = []
        """All that were ever made: the engine may have copies out of one queued that is lent no more."""
        weakref.finalize(self, _orphans.extend, self._all).atexit = False
        self._allocated = 0
        self._in_use = 0
        self._returned: deque[Turn] = deque()
        """Turns that are over and not yet accounted for."""
        # An RLock, since a signal's handler may take a turn anywhere. Nobody waits for it in order to end an operation:
        # the handler may wait for that.
        self._lock = threading.RLock()

    @classmethod
    def of(cls, client: Client) -> "StagePool":
        """The pool of all stores of a client. What a store that is gone has used, others can use."""
        with _making:
            pool = _pools.get(client)
            if pool is None:
                _let_go_of_orphans()
                # The pool must not keep the client, with which it goes.
                reference = weakref.ref(client)

                def allocate(size: int) -> Block | None:
                    client = reference()
                    return None if client is None else client.allocate(size)

                pool = _pools[client] = cls(allocate)
            return pool

    def __repr__(self) -> str:
        return f"<StagePool {self.statistics()}>"

    def take(self, key: Hashable, like: Arrays) -> Turn:
        """A turn at a stage of the shape and type of some arrays, with any content.

        Turns of one key must be taken, and what is to be done in them queued in the engine, one after another.

        Args:
            key: Whose turn it is.
            like: Arrays of the shape and type that are wanted.
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
            turn = Turn(stage, lent_to, fresh=fresh)
            stage.taken += 1
        self._settle()
        return turn

    def give_back(self, turn: Turn, failure: str | None = None) -> None:
        """A turn is over: the engine has the operation in which the stage was used, or will never run it.

        Args:
            turn: What was taken.
            failure: Why the operation failed, None where it did not.
        """
        stage = turn._stage
        # At once: the engine may run the check of the next turn before this one is accounted for. No two turns at a
        # stage end well at the same time.
        if failure is None:
            stage.succeeded += 1
        else:
            stage.failure = stage.failure or failure
        self._returned.append(turn)
        self._settle()

    def statistics(self) -> StageStatistics:
        """The counts of this moment."""
        self._settle()
        with self._lock:
            return StageStatistics(self._allocated, self._in_use)

    def _settle(self) -> None:
        """Accounts for the turns that are over. Where another thread has the lock, that one does it when it lets go."""
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


_pools: "weakref.WeakKeyDictionary[Client, StagePool]" = weakref.WeakKeyDictionary()
_making = threading.RLock()

_orphans: Final[list[_Stage]] = []
"""Stages whose pool is gone. They are let go when the next one is made: the collector, which may have ended theirs at
any place in the program, cannot do it there."""


def _let_go_of_orphans() -> None:
    while _orphans:
        stage = _orphans.pop()

        def let_go(operation: operations.Operation, stage: _Stage = stage) -> None:
            # It is kept by this function, as long as the engine uses it.
            operation.complete()

        operations.push(stage.array, operations.Operation(let_go, operations.ignore), always=True)
