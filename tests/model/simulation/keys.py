"""The names of keys in histories, which say what a key is: its elements, and the ranks that use it."""

from psum.client import Operation

KeyOperation = tuple[str, Operation]
"""The name of a key, and the operation that it is used with."""


def of_all(index: int) -> str:
    """Return the name of a key of all ranks; `index` is that of its elements in the plan."""
    return f"k{index}"


def of_some(index: int, ranks: tuple[int, ...], number: int) -> str:
    """Return the name of a key that only some ranks use. The number makes it unique."""
    return f"k{index} of {','.join(map(str, ranks))} no {number}"


def index_of(key: KeyOperation) -> int:
    """Return the index of a key's elements in the plan."""
    return int(key[0].split()[0][1:])


def ranks_of(key: KeyOperation) -> tuple[int, ...]:
    """Return the ranks that use a key, the root of a broadcast first. None: all ranks."""
    words = key[0].split()
    return tuple(map(int, words[2].split(","))) if len(words) > 1 else ()


def root_of(key: KeyOperation) -> int:
    """Return the rank whose value a broadcast sends."""
    return (ranks_of(key) or (0,))[0]


def stands_in(key: KeyOperation) -> bool:
    """Return whether, in an elastic job, each rank has a value that may take the place of a lost root's."""
    return key[1] is Operation.BROADCAST and not ranks_of(key) and index_of(key) % 2 == 0
