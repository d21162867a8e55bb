"""Which tensors of a training lie in memory that aggregators read from."""

from typing import Any, Final

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import psum.torch
from psum.torch.staging.shared_storages import SharedStorages
from tests.torch.ranks import Ranks

#: With this size, a layer's weights have more than 1 MiB.
SIZE: Final = 600
STEPS: Final = 5


def shared_bytes() -> int:
    """How many bytes of tensors lie there."""
    group: Any = dist.group.WORLD
    return SharedStorages.of(group.client).nbytes


def trained(*, hooked: bool) -> tuple[int, float]:
    """Train with DistributedDataParallel. Returns the bytes that lie there, and a gradient."""
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(SIZE, SIZE, bias=False))
    if hooked:
        model.register_comm_hook(None, psum.torch.hook())
    for _ in range(STEPS):
        model.zero_grad()
        model(torch.full((1, SIZE), float(dist.get_rank() + 1))).sum().backward()
    gradient = model.module.weight.grad
    assert gradient is not None
    return shared_bytes(), float(gradient[3, 4])


def by_ddp() -> tuple[int, float]:
    """A training as it is."""
    return trained(hooked=False)


def by_hook() -> tuple[int, float]:
    """A training with psum's communication hook."""
    return trained(hooked=True)


def by_all_reduce() -> tuple[int, float]:
    """The program sums a tensor itself, also in the middle of a backward pass."""
    tensor = torch.ones(SIZE, SIZE)
    weight = torch.nn.Parameter(torch.ones(1))
    weight.register_hook(lambda _: dist.all_reduce(tensor.fill_(dist.get_rank() + 1), dist.ReduceOp.AVG))
    for _ in range(STEPS):
        (weight * 2).sum().backward()
        dist.all_reduce(tensor.fill_(dist.get_rank() + 1), dist.ReduceOp.AVG)
    return shared_bytes(), float(tensor[3, 4])


def test_buckets_of_distributed_data_parallel_lie_there(ranks: Ranks) -> None:
    """They are moved, with and without the hook. The program's own tensors stay where they are, whose addresses it may
    know."""
    size = SIZE * SIZE * 4
    assert ranks.run(2, by_ddp) == [(size, 1.5)] * 2
    assert ranks.run(2, by_hook) == [(size, 1.5)] * 2
    assert ranks.run(2, by_all_reduce) == [(0, 1.5)] * 2
