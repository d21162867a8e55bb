"""The numbers of stores. A program may reserve one before there is a client."""

import itertools
from typing import NamedTuple

#: The namespace of psum's own keys, apart from those of all stores.
INTERNAL = -1

#: The namespace of those of psum's own keys that the first aggregator process owns. A process that joins an elastic job
#: finds them before it knows where other keys are.
STEERING = -2


class StoreNumber(NamedTuple):
    """A number that is reserved for a store.

    Attributes:
        numbering: Which client's numbers it belongs to.
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
