"""Finds what a program does again and again: things that come in the same order twice in a row."""

from collections.abc import Hashable, Sequence
from typing import Final, Generic, TypeVar

#: The longest sequence whose repetition is found.
LONGEST: Final = 256

Thing = TypeVar("Thing", bound=Hashable)


class Repetitions(Generic[Thing]):
    """Takes one thing after the other. What it finds depends on the things and their order only."""

    def __init__(self) -> None:
        self._things: list[Thing] = []
        """The last things, and more of them than the longest repetition has."""
        self._period: int | None = None
        """The length of the longest sequence that was found last, as long as each thing is the one so many before."""

    def add(self, thing: Thing) -> list[Sequence[Thing]]:
        """Takes the next thing. This takes little time while the repetition that was found last goes on.

        Returns:
            The sequences that have come twice in a row at the end of all things. A sequence that is a shorter one
            several times over does not count. Nothing if the repetition that was found last goes on. A sequence that
            comes three times in a row is found by then, itself or beginning with a later thing of it.
        """
        things = self._things
        things.append(thing)
        if len(things) > 4 * LONGEST:
            del things[: -2 * LONGEST]
        if self._period is not None and thing == things[-1 - self._period]:
            return []
        lengths = range(1, min(LONGEST, len(things) // 2) + 1)
        found = [things[-length:] for length in lengths if _is_twice(things, length)]
        found = [sequence for sequence in found if _is_least(sequence)]
        self._period = len(found[-1]) if found else None
        return list(found)


def _is_twice(things: Sequence[object], length: int) -> bool:
    """Whether things end with a sequence of this length twice in a row."""
    # Nearly all differ in their last thing.
    return things[-1] == things[-1 - length] and things[-length:] == things[-2 * length : -length]


def _is_least(sequence: Sequence[object]) -> bool:
    """Whether a sequence is not a shorter one several times over."""
    length = len(sequence)
    parts = [part for part in range(1, length // 2 + 1) if length % part == 0]
    return not any(sequence[part:] == sequence[:-part] for part in parts)
