"""Places in sums of bytes tell whether a rank has contributed to all of its place."""

import pytest
import torch

from psum.client.core.placement import Placement
from psum.torch import marks
from psum.torch.collectives.places import Places


@pytest.mark.parametrize("size", [0, 1, 14, 15, 16, 30, 1000])
def test_bytes_come_back(size: int) -> None:
    """What was written to a place is read from it, and it is complete."""
    data = torch.randint(0, 256, (size,), dtype=torch.uint8)
    place = torch.zeros(marks.marked_size(size), dtype=torch.uint8)
    marks.write(place, data)
    assert marks.is_complete(place)
    assert marks.read(place, size).equal(data)


@pytest.mark.parametrize("partition", [64, 100, 4096, 2 << 20])
@pytest.mark.parametrize("weights", [[1], [1, 1], [3, 1, 0, 2]])
def test_a_lost_shard_is_noticed(partition: int, weights: list[int]) -> None:
    """However a sum is cut, a place that lacks what a rank gave to any one of its shards is not complete."""
    size = 5000
    for ranks in (1, 3):
        places = Places(ranks, size, torch.device("cpu"), elastic=True)
        for rank in range(ranks):
            places.write(rank, torch.zeros(size, dtype=torch.uint8))
        flat = places.every.view(-1)
        width = len(flat) // ranks
        shards = Placement(partition, weights).shards(0, len(flat), 1)
        places.count([])
        assert places.lost() == []
        for shard in shards:
            whole = flat[shard.start : shard.stop].clone()
            flat[shard.start : shard.stop] = 0
            touched = [r for r in range(ranks) if shard.start < (r + 1) * width and shard.stop > r * width]
            assert places.lost() == touched, shard
            flat[shard.start : shard.stop] = whole


def test_places_without_marks() -> None:
    """In other jobs, places have no marks, and nobody is lost."""
    places = Places(2, 3, torch.device("cpu"), elastic=False)
    places.write(1, torch.tensor([1, 2], dtype=torch.uint8))
    assert places.every.tolist() == [[0, 0, 0], [1, 2, 0]]
    assert places.read() is places.every
    assert places.lost() == []
