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

    As long as only the program's own threads begin operations, kinds are numbered in the order of their first use, and
    the number alone is the name: ranks that disagree on the kind of an operation then use one key for different things,
    and psum reports that to all of them at once. Callbacks of futures may begin operations too, at any moment. Only the
    order of operations of one kind is then the same on all ranks, so the kind is in the name. Ranks that disagree then
    wait for each other until the timeout.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._has_callbacks = False
        self._counts: dict[Kind, int] = {}
        self._numbers: dict[tuple[Kind, int], int] = {}

    def expect_callbacks(self) -> None:
        """From now on callbacks may begin operations. All ranks call this between the same operations."""
        self._has_callbacks = True

    def name(self, kind: Kind) -> str:
        """Returns the name of the key for the next operation."""
        with self._lock:
            count = self._counts.get(kind, 0)
            self._counts[kind] = count + 1
            slot = count % slots(kind.nbytes)
            if self._has_callbacks:
                return f"{kind} in slot {slot}"
            return str(self._numbers.setdefault((kind, slot), len(self._numbers)))


def slots(nbytes: int) -> int:
    """Returns how many keys operations of this size have."""
    if nbytes > _ALONE_BYTES:
        return 1
    return max(2, min(_MOST_SLOTS, _SLOT_BYTES // max(1, nbytes)))


def rounded_up(nbytes: int) -> int:
    """Returns the least size that is not smaller and has three significant binary digits, and at least 64 bytes.

    Sizes of pickled objects differ from call to call. Rounded, they need few keys.
    """
    step = max(64, 1 << max(0, nbytes.bit_length() - 3))
    return -(-max(1, nbytes) // step) * step
