"""Names of keys for operations that have none: all ranks must find the same name for the same operation.

torch.distributed demands that all ranks call a group's collectives in the same order. So ranks that count alike name
alike.
"""

import collections
import copy
import threading
from typing import Final, NamedTuple

from psum.torch.repetitions import Repetitions

#: How many operations of one kind may be under way at the same time.
_MOST_SLOTS: Final = 8

#: The most bytes that the keys of such operations may have together, if there are more than two. Clients and
#: aggregators keep memory for each key.
_SLOT_BYTES: Final = 8 << 20

#: Larger operations have one key for all of their kind.
_ALONE_BYTES: Final = 64 << 20

#: Sums of this size and more get as many keys as a pass of the program has sums of their kind, if these keys have at
#: most so many bytes together.
_OF_PASS_BYTES: Final = 1 << 20
_PASS_BYTES: Final = 4 << 30

#: What the gradients of a pass are summed with.
_SUM: Final = "all_reduce"

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

    @property
    def may_be_of_pass(self) -> bool:
        """Whether it may be the sum of a part of the gradients."""
        return self.name == _SUM and self.nbytes >= _OF_PASS_BYTES

    def __str__(self) -> str:
        return f"{self.name} of {self.elements} × {self.dtype}"


class Numbering(NamedTuple):
    """Where a KeySequence stands.

    Attributes:
        counts: How many operations of each kind there were.
        numbers: The numbers of kinds and their keys.
        own: The kinds that have keys of their own.
        slots: How many keys the kinds of large sums have.
        repetitions: What the program repeats, as far as it is known.
    """

    counts: list[tuple[Kind, int]]
    numbers: list[tuple[Kind, int, int]]
    own: list[Kind]
    slots: dict[Kind, int]
    repetitions: Repetitions[Kind]


class KeySequence:
    """Names operations of one group that begin in the same order on all ranks. From any thread.

    A key keeps its size and type for ever, and operations on one key wait for each other. So operations of one kind
    take turns on a few keys, and a training uses the same keys in every step.

    If the program repeats a sequence of large sums, as a training repeats the buckets of its backward pass, each sum of
    the sequence gets a key of its own. Then no sum takes the place of another one of the same pass, which
    DistributedDataParallel still needs. Before that, large sums have one key for each kind, and two if one follows
    another directly.

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
        start = numbering or Numbering([], [], [], {}, Repetitions())
        self._counts = collections.Counter(dict(start.counts))
        self._numbers = {(kind, slot): number for kind, slot, number in start.numbers}
        self._own = set(start.own)
        self._slots = dict(start.slots)
        """How many keys the kinds of large sums have."""
        self._repetitions = copy.deepcopy(start.repetitions)

    def numbering(self) -> Numbering:
        """Where it stands. Another sequence that begins there gives the same names."""
        with self._lock:
            numbers = [(kind, slot, number) for (kind, slot), number in self._numbers.items()]
            slots, repetitions = dict(self._slots), copy.deepcopy(self._repetitions)
            return Numbering(list(self._counts.items()), numbers, list(self._own), slots, repetitions)

    def name(self, kind: Kind) -> str:
        """Returns the name of the key for the next operation, which is of this kind."""
        with self._lock:
            if kind.may_be_of_pass:
                self._note(kind)
            slot = self._counts[kind] % self._slots.get(kind, slots(kind.nbytes))
            self._counts[kind] += 1
            number = self._numbers.setdefault((kind, slot), len(self._numbers))
        return f"{number} of callbacks {self._level}" if self._level else str(number)

    def _note(self, kind: Kind) -> None:
        """Finds out how many keys large sums need, now that one of a kind follows. The numbers never fall."""
        self._slots.setdefault(kind, fewest_slots(kind.nbytes))
        for repeated in self._repetitions.add(kind):
            for each, count in collections.Counter(repeated).items():
                needed = slots(each.nbytes) if len(repeated) == 1 else count
                if needed > self._slots[each] and needed * each.nbytes <= _PASS_BYTES:
                    self._slots[each] = needed

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
    """Returns how many keys operations of one kind have that follow each other directly.

    Args:
        nbytes: The size of each.
    """
    return 1 if nbytes > _ALONE_BYTES else max(2, fewest_slots(nbytes))


def fewest_slots(nbytes: int) -> int:
    """Returns how many keys a kind of large sums has at first."""
    return max(1, min(_MOST_SLOTS, _SLOT_BYTES // max(1, nbytes)))


def rounded_up(size: int) -> int:
    """Returns the least size that is not smaller and has three significant binary digits, and at least 64.

    Sizes of pickled objects, for example, differ from call to call. Rounded, they need few keys.
    """
    step = max(64, 1 << max(0, size.bit_length() - 3))
    return -(-max(1, size) // step) * step
