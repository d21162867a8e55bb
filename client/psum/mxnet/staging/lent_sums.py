"""Sums that GPUs copy from the memory in which aggregators made them, so that no processor copies them.

psum lends such a sum until this rank contributes to the key's next round. A sum that is still lent then gets pages of
its own, but a GPU would go on reading the pages that were pinned. So a Lane must keep later sums of the key from
beginning until the loan is given up.
"""

import weakref
from collections.abc import Callable, Hashable
from typing import Final, Protocol

from psum.client import Client, Loan
from psum.client.per_client import PerClient
from psum.mxnet.staging import cuda
from psum.mxnet.staging.host_memory import worker

#: Smaller sums are copied by the processor in less time than it takes to lend them.
LEAST_BYTES: Final = 1 << 18


class Memory(Protocol):
    """Where the sums of a key lie, mapped as one piece; see psum.planes.MappedSums."""

    @property
    def address(self) -> int: ...

    @property
    def size(self) -> int: ...


#: The memory of a key's last lent sum, which stays mapped as long as this refers to it, and the number of the device
#: through which it was pinned; None if it is not pinned.
_Pinned = tuple[Memory, int | None]


class LentSums:
    """The pinned memory of lent sums of one client. For the thread that moves arrays.

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
        self._pinned: dict[Hashable, _Pinned] = {}
        weakref.finalize(self, _let_go, self._pinned, unpin).atexit = False

    @classmethod
    def of(cls, client: Client) -> "LentSums":
        """Returns those of a client."""
        return _of_clients.of(client)

    def pinned(self, key: Hashable, loan: Loan, device: int) -> bool:
        """Pins the memory of a lent sum, unless it is. Returns whether it is pinned now.

        Args:
            key: The key.
            loan: The sum.
            device: The number of a GPU that this process uses.
        """
        memory = loan.memory
        last = self._pinned.get(key)
        if last is None or last[0] is not memory:
            if last is not None and last[1] is not None:
                self._unpin(last[0].address, last[1])
            could = self._pin(memory.address, memory.size, device)
            last = self._pinned[key] = memory, device if could else None
        return last[1] is not None


def _let_go(pinned: dict[Hashable, _Pinned], unpin: Callable[[int, int], None]) -> None:
    def let_go() -> None:
        for memory, device in pinned.values():
            if device is not None:
                unpin(memory.address, device)
        # The memory may be unmapped from here on.
        pinned.clear()

    worker.do(let_go)


_of_clients: Final = PerClient(lambda client: LentSums())
