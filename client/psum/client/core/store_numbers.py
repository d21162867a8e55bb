"""The numbers of stores, given out where the program makes them, which may be before there is a client."""

import itertools
from typing import NamedTuple

#: The namespace of what psum itself asks the other ranks, apart from the keys of all stores.
INTERNAL = -1


class StoreNumber(NamedTuple):
    """The number of a store that is made later.

    Attributes:
        numbering: Whose number it is.
        value: The number, from 0.
    """

    numbering: "StoreNumbers"
    value: int


class StoreNumbers:
    """Numbers the stores of one client, from 0 in the order of the calls. From any thread."""

    def __init__(self) -> None:
        self._count = itertools.count()

    def next(self) -> StoreNumber:
        """The next number."""
        return StoreNumber(self, next(self._count))
