"""Results that stay in the aggregators' shared memory and are lent to the program: when to lend, when to copy.

A caller that only reads a result once need not have it in memory of its own. Its result is then lent: one view of the
places where the aggregators have summed the key's shards. The next sum of a shard takes the same place, as soon as all
ranks have contributed to it. So before this rank contributes, a view that is still lent gets a copy of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from psum.planes import Loan

#: So many times in a row a loan may have to be copied in the end. Such a copy costs more than one to where the result
#: is wanted. So the key then lends nothing for a while: for this many operations, and after each further loan that had
#: to be copied for twice as many, up to a limit.
_MOST_IN_VAIN: Final = 2
_FIRST_PAUSE: Final = 8
_LONGEST_PAUSE: Final = 64


class Mapping(Protocol):
    """The shards' places as one piece; see psum.planes.MappedSums."""

    @property
    def is_lent(self) -> bool: ...

    def shows(self, pieces: Sequence[memoryview]) -> bool: ...

    def lend(self) -> Loan: ...

    def detach(self) -> None: ...


#: Maps pieces of memory one after the other; None if they cannot be mapped so.
MapPieces = Callable[[Sequence[memoryview]], Mapping | None]


def lends_nothing(pieces: Sequence[memoryview]) -> None:
    """Maps nothing, so nothing is lent. In elastic jobs, aggregators do not wait for a lost rank before they reuse the
    memory. Such a rank may live, and must not see a sum change."""


class KeyLoans:
    """What one key lends. Used from the client's thread only.

    Args:
        shards: The number of its shards.
        map_pieces: Maps results in shared memory one after the other.
    """

    def __init__(self, shards: int, map_pieces: MapPieces) -> None:
        self._map_pieces = map_pieces
        self._pieces: list[memoryview | None] = [None] * shards
        """The results of the running operation that lie in shared memory."""
        self._mapping: Mapping | None = None
        self._lent_last = False
        """Whether the last operation's result was lent."""
        self._in_vain = 0
        """How many loans in a row were copied in the end."""
        self._pause = 0
        """For how many operations nothing is lent."""
        self._next_pause = _FIRST_PAUSE
        self._unmappable = False

    @property
    def lends(self) -> bool:
        """Whether the running operation's result may be lent. If not, the shards cannot be mapped, or earlier results
        were kept for too long."""
        return not self._unmappable and not self._pause

    def secure(self) -> None:
        """To be called before this rank contributes to the next round: keeps what is lent from changing.

        Raises:
            MemoryError: There is not enough memory for that. This rank must not contribute.
        """
        if self._pause:
            self._pause -= 1
        mapping, lent_last, self._lent_last = self._mapping, self._lent_last, False
        if mapping is None or not lent_last:
            return
        if not mapping.is_lent:
            self._in_vain, self._next_pause = 0, _FIRST_PAUSE
            return
        mapping.detach()
        self._mapping = None
        self._in_vain += 1
        if self._in_vain >= _MOST_IN_VAIN:
            self._pause, self._next_pause = self._next_pause, min(2 * self._next_pause, _LONGEST_PAUSE)

    def collect(self, shard: int, piece: memoryview) -> None:
        """Takes the result of a shard of the running operation, which lies in shared memory and was not copied."""
        self._pieces[shard] = piece

    def conclude(self, copy: Callable[[int, memoryview], Any]) -> Loan | None:
        """Lends the result of the running operation, all of whose shards have theirs.

        Args:
            copy: Called with each shard that was collected, and its result, if nothing can be lent.
        """
        pieces, self._pieces = self._pieces, [None] * len(self._pieces)
        whole = [piece for piece in pieces if piece is not None]
        mapping = self._mapped(whole) if len(whole) == len(pieces) else None
        if mapping is not None:
            self._lent_last = True
            return mapping.lend()
        for shard, piece in enumerate(pieces):
            if piece is not None:
                copy(shard, piece)
        return None

    def _mapped(self, pieces: Sequence[memoryview]) -> Mapping | None:
        if not self.lends:
            return None
        # An aggregator that was started again has other places.
        if self._mapping is None or not self._mapping.shows(pieces):
            self._mapping = self._map_pieces(pieces)
            self._unmappable = self._mapping is None
        return self._mapping
