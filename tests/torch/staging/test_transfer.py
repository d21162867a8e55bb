"""Sums and broadcasts of tensors in host memory, in place."""

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from psum import client as psum
from psum.torch import staging
from tests.integration.conftest import Fleet

TYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool),
)

#: Bit patterns that a sum of floats with zeros would change: a NaN with a payload, and -0.0.
ODD_BITS = torch.tensor([0x7FC12345, -0x80000000, 1, -1], dtype=torch.int32)


def result_of(begin: Callable[..., None]) -> None:
    """Starts a transfer by a function that takes `done`, and waits for its end."""
    ended, errors = threading.Event(), []

    def done(error: psum.PsumError | None) -> None:
        errors.append(error)
        ended.set()

    begin(done=done)
    assert ended.wait(20)
    assert errors == [None]


def shaped(kind: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of a kind of layout with the values of a flat one of 24 elements."""
    if kind == "transposed":
        return tensor.clone().view(4, 6).t()
    if kind == "sliced":
        return tensor.repeat_interleave(2)[::2]
    return {"flat": tensor, "0-d": tensor[5], "empty": tensor[:0], "offset": tensor[1:]}[kind].clone()


@pytest.mark.parametrize("layout", ["flat", "0-d", "empty", "offset", "transposed", "sliced"])
def test_sums_of_all_types(fleet: Fleet, layout: str) -> None:
    """Every type is summed in place, whatever its layout in memory; all ranks get the same."""

    def work(client: psum.Client) -> list[torch.Tensor]:
        store = client.store()
        tensors = []
        for dtype in TYPES:
            values = shaped(layout, (torch.arange(24) % 5 * (client.rank + 1)).to(dtype))
            if dtype is torch.bool:
                values = values & (client.rank == 1)
            address = values.data_ptr()
            result_of(functools.partial(staging.push_pull, store, str(dtype), values))
            assert values.data_ptr() == address
            tensors.append(values)
        return tensors

    ranks = fleet.on_every_rank(2, work, job=f"sums {layout}")
    for dtype, *results in zip(TYPES, *ranks, strict=True):
        factor = 2 if dtype is torch.bool else 3
        expected = shaped(layout, (torch.arange(24) % 5 * factor).to(dtype))
        assert all(torch.equal(result, expected) for result in results), dtype


@pytest.mark.parametrize("root", [0, 1])
def test_broadcast_keeps_every_bit(fleet: Fleet, root: int) -> None:
    """All ranks get the bits of the root, from whichever rank, also NaN and -0.0."""

    def work(client: psum.Client) -> list[Any]:
        store = client.store()
        value = ODD_BITS.clone() if client.rank == root else torch.full((4,), 77, dtype=torch.int32)
        tensor = value.view(torch.float32)
        for _ in range(2):
            result_of(functools.partial(staging.broadcast, store, "w", tensor, root=root))
        return list(value.tolist())

    assert fleet.on_every_rank(2, work, job=f"broadcast {root}") == [ODD_BITS.tolist()] * 2


def test_types_that_psum_cannot_sum(fleet: Fleet) -> None:
    """The error names the type or the device, and the key can still be used."""
    wrong = torch.zeros(1, dtype=torch.complex64), torch.zeros(1, device="meta"), torch.zeros(1).to_sparse()
    with fleet.worker(0, 1, job="types") as client:
        store = client.store()
        for tensor, said in zip(wrong, ("complex64", "meta", "sparse"), strict=True):
            with pytest.raises(TypeError, match=said):
                staging.push_pull(store, "c", tensor, done=lambda _: None)
        tensor = torch.ones(1)
        result_of(functools.partial(staging.push_pull, store, "c", tensor))
