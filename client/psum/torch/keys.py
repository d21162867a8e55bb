"""Names of keys for operations that have none: all ranks must find the same name for the same operation.

torch.distributed demands that all ranks call a group's collectives in the same order. So ranks that count alike name
alike.
"""

import threading
from typing import Final, NamedTuple

#: How many operations of one kind may be under way at the same time.
_MOST_SLOTS: Final = 8

#: The most bytes that the keys of such operations may have together, if there are more than two. Clients and
#: aggregators keep memory for each key.
_SLOT_BYTES: Final = 8 << 20

#: Larger operations have one key for all of their kind.
_ALONE_BYTES: Final = 64 << 20

#: How many kinds of operations have keys of their own.
MOST_KINDS: Final = 1024


class Kind(NamedTuple):
    """What ranks must agree on in one operation.

    Attributes:
        name: What is done, as people call it.
        dtype: The type of the elements.
        elements: How many there are.
        nbytes: How many bytes they take.
    """

    name: str
    dtype: str
    elements: int
    nbytes: int

    def __str__(self) -> str:
        return f"{self.name} of {self.elements} × {self.dtype}"


class KeySequence:
    """Names the operations of one group. From any thread.

    A key keeps its size and type for ever, and operations on one key wait for each other. So operations of one kind
    take turns on a few keys, and a training uses the same keys in every step.

    The program begins its operations in the same order on all ranks. Their kinds are numbered in the order of their
    first use, and the number alone is the name: ranks that disagree on the kind of an operation then use one key for
    different things, and psum reports that to all of them at once.

    Callbacks of futures may begin operations too, at moments that differ between ranks. Only the order of operations of
    one kind is then the same on all ranks, so the kind is in the name. Ranks that disagree there wait for each other
    until the timeout.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[Kind, bool], int] = {}
        self._numbers: dict[tuple[Kind, int], int] = {}
        self._own: set[Kind] = set()

    def name(self, kind: Kind, *, in_callback: bool = False) -> str:
        """Returns the name of the key for the next operation.

        Args:
            kind: What it does.
            in_callback: Whether a callback of a future begins it.
        """
        with self._lock:
            count = self._counts.get((kind, in_callback), 0)
            self._counts[kind, in_callback] = count + 1
            slot = count % slots(kind.nbytes)
            if in_callback:
                return f"{kind} in slot {slot} of callbacks"
            return str(self._numbers.setdefault((kind, slot), len(self._numbers)))

    def has_own_keys(self, kind: Kind, *, in_callback: bool = False) -> bool:
        """Whether operations of this kind have keys of their own.

        The first MOST_KINDS kinds have. Later ones must be rounded up to one of few sizes, because keys stay for ever:
        a program whose tensors have ever new sizes would fill the aggregators' memory. Not in callbacks, where ranks
        would not agree on which kinds come first.

        Args:
            kind: What the operation does.
            in_callback: Whether a callback of a future begins it.
        """
        if in_callback:
            return True
        with self._lock:
            if len(self._own) < MOST_KINDS:
                self._own.add(kind)
            return kind in self._own


def slots(nbytes: int) -> int:
    """Returns how many keys operations of this size have."""
    if nbytes > _ALONE_BYTES:
        return 1
    return max(2, min(_MOST_SLOTS, _SLOT_BYTES // max(1, nbytes)))


def rounded_up(size: int) -> int:
    """Returns the least size that is not smaller and has three significant binary digits, and at least 64.

    Sizes of pickled objects, for example, differ from call to call. Rounded, they need few keys.
    """
    step = max(64, 1 << max(0, size.bit_length() - 3))
    return -(-max(1, size) // step) * step
