"""A namespace of keys, and what can be done with them."""

import operator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from psum.client.core.buffers import Buffer
from psum.client.core.operation import Operation
from psum.client.core.store_numbers import INTERNAL
from psum.client.core.ticket import Ticket
from psum.client.future import Outcome
from psum.wire import ElementType

if TYPE_CHECKING:
    from psum.client.client import Client

#: As many characters of a label count: an aggregator takes 4096.
_LABEL_LIMIT: Final = 1024

#: What the protocol has room for.
_PRIORITY_LIMIT: Final = 1 << 63


class Store:
    """A namespace of keys over a client's connections. Made by Client.store.

    Keys are str or int; 3 and '3' are one key. A key keeps its shape and element type. All ranks must use a key alike,
    and the same number of times; the calls on one key must come in the same order on all ranks, those on different keys
    need not.
    """

    def __init__(self, client: "Client", number: int) -> None:
        self.client = client
        self.number = number

    def __repr__(self) -> str:
        return f"<Store {self.number} of {self.client!r}>"

    def push_pull(
        self, key: str | int, value: Any, out: Any = None, *, priority: int = 0, element_type: object = None
    ) -> None:
        """Sums a tensor over all ranks, and waits for it.

        Args:
            key: The tensor's name.
            value: This rank's tensor: anything C-contiguous with the buffer protocol.
            out: Where the sum goes, of the same shape and type; None: into value.
            priority: The higher, the sooner.
            element_type: What the elements are, where the buffer cannot say, such as 'bfloat16' in an array of uint16.

        Raises:
            TypeError, ValueError: The arguments do not fit.
            PsumError: The sum cannot be had.
        """
        self.client.check_may_wait()
        self.push_pull_async(key, value, out, priority=priority, element_type=element_type).result()

    def push_pull_async(
        self, key: str | int, value: Any, out: Any = None, *, priority: int = 0, element_type: object = None
    ) -> "Future[None]":
        """The same without waiting: value must not change, and out not be used, before the future is done."""
        source = Buffer.of(value, "value", element_type, writable=out is None)
        target = source if out is None else _like(source, out, element_type)
        return self._begin(key, source, target, Operation.SUM, priority, True)

    def broadcast(self, key: str | int, value: Any, *, priority: int = 0, element_type: object = None) -> None:
        """Gives every rank the tensor of rank 0, in place, and waits for it. Takes part on all ranks or on none.

        Args:
            key: The tensor's name.
            value: Read on rank 0, written to on the others.
            priority: The higher, the sooner.
            element_type: As for push_pull.

        Raises:
            TypeError, ValueError: The arguments do not fit.
            PsumError: The value cannot be had.
        """
        self.client.check_may_wait()
        self.broadcast_async(key, value, priority=priority, element_type=element_type).result()

    def broadcast_async(
        self, key: str | int, value: Any, *, priority: int = 0, element_type: object = None
    ) -> "Future[None]":
        """The same without waiting."""
        root = self.client.rank == 0
        buffer = Buffer.of(value, "value", element_type, writable=not root)
        return self._begin(key, buffer, buffer, Operation.BROADCAST, priority, root)

    def reserve(
        self,
        key: str | int,
        *,
        shape: tuple[int, ...],
        element_type: ElementType,
        operation: Operation = Operation.SUM,
        priority: int = 0,
        label: str = "",
    ) -> Ticket:
        """Announces an operation whose value comes later, for frameworks with a scheduler of their own.

        The round is fixed here, in program order. The ticket must then be started or aborted.

        Args:
            key: The tensor's name.
            shape: Its shape.
            element_type: The type of its elements.
            operation: What is done with it.
            priority: The higher, the sooner.
            label: What the key stands for, such as the name of a model's parameter; at most 1024 characters count. It
                is shown beside the key, and ranks that use one key for different things get a DisagreementError.

        Raises:
            TypeError: The key is neither str nor int, or the priority no whole number.
            ValueError: The key had another shape or element type before, or the priority needs more than 64 bits, or
                the key stood for the same before it stood for something else.
            PsumError: The key, or everything, has failed.
        """
        return self._reserve(key, shape, element_type, operation, priority, label[:_LABEL_LIMIT])

    def barrier(self) -> None:
        """Waits until all ranks have called it, the same number of times.

        Raises:
            PsumError: A rank will not come: the round timeout is over, or it is gone.
        """
        Store(self.client, INTERNAL).push_pull(f"barrier of store {self.number}", bytearray(1))

    def _reserve(
        self,
        key: str | int,
        shape: tuple[int, ...],
        element_type: ElementType,
        operation: Operation,
        priority: int,
        label: str = "",
    ) -> Ticket:
        # Here, since what is wrong with it would else come to light in the client's thread, and end the whole client.
        priority = operator.index(priority)
        if not -_PRIORITY_LIMIT <= priority < _PRIORITY_LIMIT:
            raise ValueError(f"a priority of {priority}; expected -2^63 to 2^63 - 1")
        return self.client.reserve(self.number, key_name(key), shape, element_type, operation, priority, label)

    def _begin(
        self,
        key: str | int,
        source: Buffer,
        target: Buffer,
        operation: Operation,
        priority: int,
        contributes: bool,
    ) -> Outcome:
        _, shape, kind = source
        ticket = self._reserve(key, shape, kind, operation, priority)
        future = Outcome()
        ticket.start(source.memory if contributes else None, target.memory, future)
        return future


def key_name(key: object) -> str:
    """A key as text; 3 and '3' are one key.

    Raises:
        TypeError: It is neither str nor int.
    """
    if type(key) is int:
        return str(key)
    # An integer of NumPy has __index__ and counts as one; a bool has too and is no key.
    if isinstance(key, str):
        return key
    if not isinstance(key, bool) and hasattr(key, "__index__"):
        return str(key.__index__())
    advice = "; call once for each key" if isinstance(key, list | tuple) else ""
    raise TypeError(f"a key is a str or an int, not {key!r} ({type(key).__name__}){advice}")


def _like(source: Buffer, out: Any, element_type: object) -> Buffer:
    target = Buffer.of(out, "out", element_type, writable=True)
    if target.shape != source.shape or target.element_type is not source.element_type:
        raise ValueError(
            f"value is {source.element_type.label} {source.shape}, out is {target.element_type.label} {target.shape};"
            " they must be alike"
        )
    return target
