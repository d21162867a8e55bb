"""A sum of bytes in which each rank has a place of its own."""

import torch
from psum.torch import marks


class Places:
    """As many bytes for each rank. The caller sums `every` over all ranks between `write` and `read`.

    Sums of bytes are exact for every dtype, since each byte has at most one summand that is not zero.

    Args:
        ranks: How many ranks there are.
        size: The bytes of each.
        device: Where they are.
        elastic: Whether ranks may be lost meanwhile. Marks then tell which places are complete.

    Attributes:
        every: The places: a plain tensor of uint8.
    """

    def __init__(self, ranks: int, size: int, device: torch.device, *, elastic: bool) -> None:
        self._size = size
        self._elastic = elastic
        self._incomplete = False
        width = marks.marked_size(size) if elastic else size
        self.every = torch.zeros((ranks, width), dtype=torch.uint8, device=device)

    def write(self, rank: int, *parts: torch.Tensor) -> None:
        """Writes the bytes of this rank: flat tensors of uint8, one behind the other, with zeros behind them."""
        place = self.every[rank]
        mine = torch.zeros(self._size, dtype=torch.uint8, device=place.device) if self._elastic else place
        position = 0
        for part in parts:
            mine[position : position + part.numel()].copy_(part)
            position += part.numel()
        if self._elastic:
            marks.write(place, mine)

    def count(self, _: object) -> None:
        """Notes that some ranks did not contribute to all of the sum. See staging.push_pull."""
        self._incomplete = True

    def lost(self) -> list[int]:
        """The ranks that have not contributed to all of their place, because they were lost before."""
        if not self._incomplete:
            return []
        return [rank for rank, place in enumerate(self.every) if not marks.is_complete(place)]

    def read(self) -> torch.Tensor:
        """The bytes of all ranks, in rows by rank."""
        if not self._elastic:
            return self.every
        return torch.stack([marks.read(place, self._size) for place in self.every])
