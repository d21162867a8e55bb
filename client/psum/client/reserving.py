"""What the stores and the step boundaries of a client need of it alike."""

from typing import Protocol

from psum.client.core.key import Key
from psum.client.core.operation import Operation
from psum.client.core.ticket import Ticket
from psum.wire import ElementType


class Reserving(Protocol):
    """A client, as those see it that make operations of their own."""

    def reserve(
        self,
        store: int,
        key: str,
        shape: tuple[int, ...],
        element_type: ElementType,
        operation: Operation,
        priority: int,
        label: str = "",
        ranks: tuple[int, ...] = (),
    ) -> Ticket:
        """See Store.reserve. `ranks` are those that use the key, in an elastic job; none if all do."""

    def reserve_again(self, key: Key, priority: int) -> Ticket:
        """Reserves the next round of a key for all ranks that was reserved in the same way before, without a label."""

    def close(self, timeout: float = 5.0) -> None:
        """Leaves the job."""
