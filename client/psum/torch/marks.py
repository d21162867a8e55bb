"""Bytes with marks, in sums to which each rank contributes a place of its own, and zeros elsewhere.

In an elastic job, a rank may be lost when it has contributed to some shards of such a sum. The place of a lost rank is
zero as far as it is in other shards. Marks tell what is there: the last byte of each block of 16 is 1 if the rank whose
place it is has contributed. No shard begins within a block. So the bytes of a block are there if its mark is.
"""

from typing import Final

import torch
from psum.client import SHARD_UNIT_ELEMENTS

#: The bytes of a block, which are elements of type uint8, and how many of them are not the mark.
_BLOCK: Final = SHARD_UNIT_ELEMENTS
_ROOM: Final = _BLOCK - 1


def marked_size(size: int) -> int:
    """How many bytes a place for so many bytes takes."""
    return -(-size // _ROOM) * _BLOCK


def write(place: torch.Tensor, data: torch.Tensor) -> None:
    """Writes bytes, and all marks.

    Args:
        place: A flat tensor of uint8, of the size that `marked_size` gives, with zeros.
        data: A flat tensor of uint8.
    """
    blocks = place.view(-1, _BLOCK)
    blocks[:, _ROOM] = 1
    full, rest = divmod(data.numel(), _ROOM)
    blocks[:full, :_ROOM].copy_(data[: full * _ROOM].view(full, _ROOM))
    if rest:
        blocks[full, :rest].copy_(data[full * _ROOM :])


def read(place: torch.Tensor, size: int) -> torch.Tensor:
    """Returns a copy of so many bytes from the beginning of a place."""
    return place.view(-1, _BLOCK)[:, :_ROOM].reshape(-1)[:size]


def is_complete(place: torch.Tensor) -> bool:
    """Whether all that was written to a place is there."""
    return bool(place.view(-1, _BLOCK)[:, _ROOM].all())
