"""Names of keys for operations that have none: all ranks must find the same name for the same operation.

torch.distributed demands that all ranks call a group's collectives in the same order. So ranks that count alike name
alike.
"""

import collections
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


class Numbering(NamedTuple):
    """Where a KeySequence stands.

    Attributes:
        counts: How many operations of each kind there were.
        numbers: The numbers of kinds and their keys.
        own: The kinds that have keys of their own.
    """

    counts: list[tuple[Kind, int]]
    numbers: list[tuple[Kind, int, int]]
    own: list[Kind]


class KeySequence:
    """Names operations of one group that begin in the same order on all ranks. From any thread.

    A key keeps its size and type for ever, and operations on one key wait for each other. So operations of one kind
    take turns on a few keys, and a training uses the same keys in every step.

    Kinds are numbered in the order of their first use, and the number alone is the name: ranks that disagree on the
    kind of an operation then use one key for different things, and psum reports that to all of them at once.

    Callbacks of futures may begin operations too, at moments that differ between ranks. Among themselves, callbacks of
    one level come in the same order (see CallbackThreads), so each level has a sequence of its own.

    Args:
        level: The level of callbacks that begin the operations; 0: the program does.
        numbering: Where to begin. None: at the beginning.
    """

    def __init__(self, level: int = 0, numbering: Numbering | None = None) -> None:
        self._level = level
        self._lock = threading.Lock()
        counts, numbers, own = numbering or Numbering([], [], [])
        self._counts = collections.Counter(dict(counts))
        self._numbers = {(kind, slot): number for kind, slot, number in numbers}
        self._own = set(own)

    def numbering(self) -> Numbering:
        """Where it stands. Another sequence that begins there gives the same names."""
        with self._lock:
            numbers = [(kind, slot, number) for (kind, slot), number in self._numbers.items()]
            return Numbering(list(self._counts.items()), numbers, list(self._own))

    def name(self, kind: Kind) -> str:
        """Returns the name of the key for the next operation, which is of this kind."""
        with self._lock:
            slot = self._counts[kind] % slots(kind.nbytes)
            self._counts[kind] += 1
            number = self._numbers.setdefault((kind, slot), len(self._numbers))
        return f"{number} of callbacks {self._level}" if self._level else str(number)

    def has_own_keys(self, kind: Kind) -> bool:
        """Whether operations of this kind have keys of their own.

        The first MOST_KINDS kinds have. Later ones must be rounded up to one of few sizes, because keys stay for ever:
        a program whose tensors have ever new sizes would fill the aggregators' memory.
        """
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
