"""A namespace of keys, and what can be done with them."""

import operator
from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from psum.client.core.buffers import Buffer, Memory
from psum.client.core.key import Key
from psum.client.core.operation import Operation
from psum.client.core.store_numbers import INTERNAL
from psum.client.core.ticket import Ticket
from psum.client.future import Outcome
from psum.client.reserving import Reserving
from psum.client.shared_arrays import Place
from psum.wire import LARGE_PAYLOAD_BYTES, ElementType

#: A label is cut after this many characters. An aggregator takes 4096.
_LABEL_LIMIT: Final = 1024

#: The protocol has 64 bits for a priority.
_PRIORITY_LIMIT: Final = 1 << 63

#: All ranks use the key.
_ALL: Final[tuple[int, ...]] = ()


class Member(Reserving, Protocol):
    """What a store needs of its client."""

    @property
    def rank(self) -> int:
        """This worker's rank, from 0."""

    @property
    def num_workers(self) -> int:
        """The number of workers of the job."""

    def empty(self, shape: tuple[int, ...], dtype: object) -> npt.NDArray[Any]:
        """See Client.empty."""

    def zeros(self, shape: tuple[int, ...], dtype: object) -> npt.NDArray[Any]:
        """See Client.zeros."""

    def place_of(self, memory: Memory) -> Place | None:
        """See Client.place_of."""

    def check_may_wait(self) -> None:
        """Raises RuntimeError in the thread that brings the results."""


class _Known:
    """What the arrays of a key's sums are like. The arrays themselves are not kept: they are the caller's.

    Args:
        key: The key.
        given: The element type that the caller gave.
        dtype: The arrays' type.
        shape: The arrays' shape.
    """

    __slots__ = ("_dtype", "_shape", "given", "key")

    def __init__(self, key: Key, given: object, dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> None:
        self.key = key
        self.given = given
        self._dtype = dtype
        self._shape = shape

    def fits(self, value: Any, target: Any) -> bool:
        """Whether Buffer.of takes both objects, and finds what it found before, and the sum can be written to `target`.

        False: it must look.
        """
        if type(value) is not np.ndarray or value.dtype is not self._dtype or value.shape != self._shape:
            return False
        flags = value.flags
        if target is not value:
            if type(target) is not np.ndarray or target.dtype is not self._dtype or target.shape != self._shape:
                return False
            if not flags.c_contiguous:
                return False
            flags = target.flags
        return flags.c_contiguous and flags.writeable


class Store:
    """A namespace of keys over a client's connections. Made by Client.store.

    A key is a str or an int; 3 and '3' are the same key. A key keeps its shape and element type. All ranks must use a
    key in the same way and the same number of times. Calls on one key must come in the same order on all ranks; calls
    on different keys need not.

    Args:
        client: The worker's membership in its job.
        number: The number of the namespace.

    Attributes:
        client: As given.
        number: As given.
    """

    def __init__(self, client: Member, number: int) -> None:
        self.client = client
        self.number = number
        self._known: dict[str | int, _Known] = {}
        """The last sum of each key, as far as it says how the next one can be checked faster."""

    def __repr__(self) -> str:
        return f"<Store {self.number} of {self.client!r}>"

    def empty_like(self, array: Any) -> npt.NDArray[Any]:
        """Makes an array of the shape and type of another, in memory that aggregators on this host read from.

        See Client.empty.

        Args:
            array: An array, or another object with the buffer protocol.
        """
        like = np.asarray(array)
        return self.client.empty(like.shape, like.dtype)

    def zeros_like(self, array: Any) -> npt.NDArray[Any]:
        """Makes an array like `empty_like`, whose elements are all 0."""
        like = np.asarray(array)
        return self.client.zeros(like.shape, like.dtype)

    def push_pull(
        self,
        key: str | int,
        value: Any,
        out: Any = None,
        *,
        priority: int = 0,
        element_type: object = None,
        ranks: Sequence[int] = (),
    ) -> None:
        """Sums a tensor over all ranks, and waits for the sum.

        Args:
            key: The tensor's name.
            value: This rank's tensor: any C-contiguous object with the buffer protocol.
            out: Receives the sum; of the same shape and type as value. None: value receives it.
            priority: Higher values go first.
            element_type: The type of the elements if the buffer cannot say it, such as 'bfloat16' for uint16.
            ranks: In an elastic job, the ranks that sum, this one among them. None: all. All of them must give the same
                list. A key stands for another tensor under each list.

        Raises:
            TypeError, ValueError: The arguments do not fit.
            PsumError: The sum failed.
        """
        self.client.check_may_wait()
        self.push_pull_async(key, value, out, priority=priority, element_type=element_type, ranks=ranks).result()

    def push_pull_async(
        self,
        key: str | int,
        value: Any,
        out: Any = None,
        *,
        priority: int = 0,
        element_type: object = None,
        ranks: Sequence[int] = _ALL,
    ) -> Outcome:
        """Sums a tensor without waiting. Do not change value, nor use out, before the future is done.

        Returns:
            The operation's future, a `concurrent.futures.Future`. In an elastic job, its `contributors` tell which
            parts of the sum lack some ranks.
        """
        # A dictionary would take True for 1.
        if (type(key) is str or type(key) is int) and type(priority) is int and ranks is _ALL:
            known = self._known.get(key)
            target = value if out is None else out
            if (
                known is not None
                and known.given is element_type
                and known.fits(value, target)
                and -_PRIORITY_LIMIT <= priority < _PRIORITY_LIMIT
            ):
                # Nearly every operation of a training comes here.
                return self._start(self.client.reserve_again(known.key, priority), value, target)
        return self._push_pull_unknown(key, value, out, priority, element_type, tuple(ranks))

    def _push_pull_unknown(
        self,
        key: str | int,
        value: Any,
        out: Any,
        priority: int,
        element_type: object,
        ranks: tuple[int, ...],
    ) -> Outcome:
        """Sums a tensor of which nothing is known, or which differs from what is known."""
        source = Buffer.of(value, "value", element_type, writable=out is None)
        target = source if out is None else _like(source, out, element_type)
        # The memory is the array itself if it has elements that any array of its type can be cast from.
        usual = type(value) is np.ndarray and source.memory is value and not ranks
        remembered = (element_type, value.dtype, source.shape) if usual else None
        return self._begin(key, source, target, Operation.SUM, priority, True, ranks, remembered=remembered)

    def broadcast(
        self,
        key: str | int,
        value: Any,
        *,
        priority: int = 0,
        element_type: object = None,
        ranks: Sequence[int] = (),
        elastic: bool = False,
    ) -> None:
        """Gives every rank the tensor of rank 0, in place, and waits for it. All ranks must call it, or none.

        In an elastic job, rank 0 may be lost before it has sent its value. Then the key fails on all ranks, except with
        `elastic`: then they get another rank's value, perhaps one rank's in some parts of the tensor and another's in
        others. All get the same.

        Args:
            key: The tensor's name.
            value: Read on rank 0, written to on the others.
            priority: Higher values go first.
            element_type: As for push_pull.
            ranks: As for push_pull. The first of them sends its tensor, instead of rank 0. If it is lost before, the
                key fails with WorkerLostError, whatever `elastic` says.
            elastic: Whether `value` has a tensor on each rank that the others may get if rank 0 is lost, such as
                parameters after their initialization. All ranks must say the same. It has no effect in other jobs.

        Raises:
            TypeError, ValueError: The arguments do not fit.
            WorkerLostError: The rank that was to send its value is gone.
            PsumError: The broadcast failed.
        """
        self.client.check_may_wait()
        self.broadcast_async(
            key, value, priority=priority, element_type=element_type, ranks=ranks, elastic=elastic
        ).result()

    def broadcast_async(
        self,
        key: str | int,
        value: Any,
        *,
        priority: int = 0,
        element_type: object = None,
        ranks: Sequence[int] = (),
        elastic: bool = False,
    ) -> Outcome:
        """Broadcasts without waiting. Do not change value, nor use it, before the future is done."""
        which = tuple(ranks)
        root = self.client.rank == (which[0] if which else 0)
        buffer = Buffer.of(value, "value", element_type, writable=not root)
        return self._begin(key, buffer, buffer, Operation.BROADCAST, priority, root, which, stands_in=elastic)

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

        This fixes the round, in program order. The ticket must then be started or aborted.

        Args:
            key: The tensor's name.
            shape: Its shape.
            element_type: The type of its elements.
            operation: What to do with it.
            priority: Higher values go first.
            label: What the key stands for, such as the name of a model's parameter. It is cut after 1024 characters and
                shown beside the key. Ranks that use one key for different things get a DisagreementError.

        Raises:
            TypeError: The key is neither str nor int, or the priority is not an integer.
            ValueError: The key had another shape or element type before, or the priority needs more than 64 bits, or
                the label was the key's before, and another one came in between.
            PsumError: The key or the whole job has failed.
        """
        return self._reserve(key, shape, element_type, operation, priority, label[:_LABEL_LIMIT])

    def barrier(self) -> None:
        """Waits until all ranks have called it, the same number of times.

        Raises:
            PsumError: A rank did not call it before the round timeout, or is gone.
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
        ranks: tuple[int, ...] = (),
    ) -> Ticket:
        # Checked here: in the client's thread, a wrong priority would end the whole client.
        priority = operator.index(priority)
        if not -_PRIORITY_LIMIT <= priority < _PRIORITY_LIMIT:
            raise ValueError(f"a priority of {priority}; expected -2^63 to 2^63 - 1")
        return self.client.reserve(self.number, key_name(key), shape, element_type, operation, priority, label, ranks)

    def _begin(
        self,
        key: str | int,
        source: Buffer,
        target: Buffer,
        operation: Operation,
        priority: int,
        contributes: bool,
        ranks: tuple[int, ...],
        *,
        stands_in: bool = False,
        remembered: tuple[object, np.dtype[Any], tuple[int, ...]] | None = None,
    ) -> Outcome:
        _, shape, kind = source
        ticket = self._reserve(key, shape, kind, operation, priority, ranks=ranks)
        if remembered is not None:
            self._known[key] = _Known(ticket.key, *remembered)
        return self._start(ticket, source.memory if contributes else None, target.memory, stands_in=stands_in)

    def _start(self, ticket: Ticket, source: Memory | None, target: Memory, *, stands_in: bool = False) -> Outcome:
        future = Outcome()
        # Smaller values travel in messages.
        if source is not None and source.nbytes >= LARGE_PAYLOAD_BYTES:
            place = self.client.place_of(source)
            if place is not None:
                ticket.start(source, target, place.block.kept_until(future), place.offset, stands_in=stands_in)
                return future
        ticket.start(source, target, future, stands_in=stands_in)
        return future


def key_name(key: object) -> str:
    """Returns a key as text; 3 and '3' are the same key.

    Raises:
        TypeError: It is neither str nor int.
    """
    if type(key) is int:
        return str(key)
    # NumPy's integers have __index__ and are keys. A bool has it too and is not.
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
            " they must be the same"
        )
    return target
