"""Sums that GPUs copy from the memory in which aggregators made them, so that no processor copies them.

psum lends such a sum until this rank contributes to the key's next round. While a GPU copies it, this must not happen:
a sum that is still lent then gets pages of its own, but a GPU goes on reading the pages that were pinned. So no later
sum of a key begins before a lent one was given up, and a sum is not lent if a later one has begun.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Final, Protocol

from psum.client import Client, Loan
from psum.mxnet.staging import cuda
from psum.mxnet.staging.host_memory import worker

_log = logging.getLogger(__name__)

#: Smaller sums are copied by the processor in less time than it takes to lend them.
LEAST_BYTES: Final = 1 << 18


class Memory(Protocol):
    """Where the sums of a key lie, mapped as one piece; see psum.planes.MappedSums."""

    @property
    def address(self) -> int: ...

    @property
    def size(self) -> int: ...


class _Key:
    """What is known of a key."""

    def __init__(self) -> None:
        self.under_way = 0
        """How many of its sums have begun and not ended."""
        self.lent: int | None = None
        """The round of the sum that may be lent, from its beginning to its end."""
        self.waiting: list[Callable[[], None]] = []
        """What begins the sums that must wait for the end of that one."""
        self.memory: Memory | None = None
        """Where its last lent sum lies. It stays mapped as long as this is kept."""
        self.pinned_for: int | None = None
        """The number of the device through which it was pinned; None if it is not pinned."""


class LentSums:
    """The keys of one client. For the thread that moves arrays.

    Args:
        pin: Pins memory that may not be written to, through a device; returns whether it could.
        unpin: Undoes that.
    """

    def __init__(
        self,
        pin: Callable[[int, int, int], bool] = cuda.pin_to_read,
        unpin: Callable[[int, int], None] = cuda.unpin,
    ) -> None:
        self._pin, self._unpin = pin, unpin
        self._keys: dict[Hashable, _Key] = {}
        weakref.finalize(self, _let_go, self._keys, unpin).atexit = False

    @classmethod
    def of(cls, client: Client) -> "LentSums":
        """Returns those of a client."""
        with _making:
            lent = _of_clients.get(client)
            if lent is None:
                lent = _of_clients[client] = cls()
            return lent

    def begin(self, key: Hashable, round: int, nbytes: int, start: Callable[[], None]) -> bool | None:
        """Begins a sum. Unless the result is None, `end` must follow.

        Args:
            key: The key.
            round: The sum's round.
            nbytes: The key's size in bytes.
            start: Called later, in this thread, if it has to wait; it calls this again.

        Returns:
            Whether the sum may be lent. None if it has to wait.
        """
        state = self._keys.get(key)
        if state is None:
            if nbytes < LEAST_BYTES:
                return False
            state = self._keys[key] = _Key()
        if state.lent is not None and state.lent < round:
            state.waiting.append(start)
            return None
        may_be_lent = not state.under_way
        state.under_way += 1
        if may_be_lent:
            state.lent = round
        return may_be_lent

    def pinned(self, key: Hashable, loan: Loan, device: int) -> bool:
        """Pins the memory of a lent sum, unless it is. Returns whether it is pinned now.

        Args:
            key: The key.
            loan: The sum.
            device: The number of a GPU that this process uses.
        """
        state, memory = self._keys[key], loan.memory
        if state.memory is not memory:
            if state.memory is not None and state.pinned_for is not None:
                self._unpin(state.memory.address, state.pinned_for)
            state.memory = memory
            state.pinned_for = device if self._pin(memory.address, memory.size, device) else None
        return state.pinned_for is not None

    def end(self, key: Hashable, round: int) -> None:
        """Ends a sum. If it was lent, it was given up."""
        state = self._keys.get(key)
        if state is None:
            return
        state.under_way -= 1
        if state.lent == round:
            state.lent = None
            waiting, state.waiting = state.waiting, []
            for start in waiting:
                start()


def _let_go(keys: dict[Hashable, _Key], unpin: Callable[[int, int], None]) -> None:
    def let_go() -> None:
        for state in keys.values():
            if state.memory is not None and state.pinned_for is not None:
                unpin(state.memory.address, state.pinned_for)
        # The memory may be unmapped from here on.
        keys.clear()

    worker.do(let_go)


_of_clients: "Final[weakref.WeakKeyDictionary[Client, LentSums]]" = weakref.WeakKeyDictionary()
_making: Final = threading.RLock()
"""Reentrant: a signal's handler may make a store anywhere."""
