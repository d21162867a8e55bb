"""DistributedDataParallel and its relatives on psum give what they give on Gloo."""

import contextlib
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from tests.torch.ranks import Ranks

#: Small enough that the network below has several buckets.
BUCKET_MEGABYTES = 0.002

STEPS = 3


class Net(torch.nn.Module):  # type: ignore[misc]
    """Layers of equal sizes, a buffer, and a branch that one step in two leaves out."""

    def __init__(self, *, branches: bool) -> None:
        super().__init__()
        self.branches = branches
        self.layers = torch.nn.ModuleList([torch.nn.Linear(16, 16) for _ in range(4)])
        self.norm = torch.nn.BatchNorm1d(16)
        self.calls = 0

    def forward(self, values: torch.Tensor) -> Any:
        self.calls += 1
        for number, layer in enumerate(self.layers):
            if not (self.branches and number == 2 and self.calls % 2):
                values = torch.relu(layer(values))
        return self.norm(values).pow(2).mean()


def bf16(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """PyTorch's hook, which DDP admits by its name on GPUs only."""
    return default_hooks.bf16_compress_hook(group, bucket)


def trained(group: Any, variant: str) -> list[torch.Tensor]:
    """Train with a group, and return all parameters and buffers."""
    rank = dist.get_rank()
    torch.manual_seed(rank)
    options = {
        "view": {"gradient_as_bucket_view": True},
        "static": {"static_graph": True},
        "unused": {"find_unused_parameters": True},
    }.get(variant, {})
    net = Net(branches=variant == "unused")
    # Gloo fails if PowerSGD's callbacks of several buckets begin collectives at the same time. torch.compile does not
    # take buckets that are smaller than the first one.
    buckets = {} if variant in ("powersgd", "compiled") else {"bucket_cap_mb": BUCKET_MEGABYTES}
    model = DistributedDataParallel(net, process_group=group, **buckets, **options)
    if variant == "compiled":
        model = torch.compile(model, backend="eager")
    hooks = {"fp16": default_hooks.fp16_compress_hook, "bf16": bf16}
    if variant in hooks:
        model.register_comm_hook(group, hooks[variant])
    if "powersgd" in variant:
        state = powerSGD_hook.PowerSGDState(group, matrix_approximation_rank=2, start_powerSGD_iter=2)
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    optimizer: torch.optim.Optimizer
    if variant == "zero":
        from torch.distributed.optim import ZeroRedundancyOptimizer

        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, process_group=group, lr=0.1)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = torch.Generator().manual_seed(100 + rank)
    # Ranks have batches of different numbers, which only join allows.
    joins = "join" in variant
    steps = STEPS + rank if joins else STEPS
    # The divisor is the number of ranks, or the number of those that still have batches: DDP's C++ code learns it from
    # the work of a collective, of which the program keeps nothing.
    with model.join(divide_by_initial_world_size=variant == "join") if joins else contextlib.nullcontext():
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=variant == "autocast"):
                loss = model(torch.randn(8, 16, generator=inputs))
            loss.backward()
            optimizer.step()
    return [value.detach().clone() for value in (*net.parameters(), *net.buffers())]


def trainings(variants: list[str]) -> list[list[list[float]]]:
    """Train with psum and with Gloo. Returns the values after psum's trainings."""
    gloo = dist.new_group(backend="gloo")
    values = []
    for variant in variants:
        ours = trained(dist.group.WORLD, variant)
        values.append([our.double().flatten().tolist() for our in ours])
        if variant == "powersgd in buckets":
            continue
        theirs = trained(gloo, variant)
        # Gloo adds up in the element type, psum in float32.
        atol = {"fp16": 1e-3, "bf16": 1e-2}.get(variant, 1e-5)
        for our, their in zip(ours, theirs, strict=True):
            assert torch.allclose(our, their, rtol=1e-4, atol=atol), f"{variant}: {our} {their}"
    return values


VARIANTS = [
    *("plain", "view", "static", "unused", "join", "join, by those left", "autocast", "compiled"),
    *("fp16", "bf16", "powersgd", "powersgd in buckets", "zero"),
]


def test_trainings_equal_those_on_gloo(ranks: Ranks) -> None:
    """With every option and hook, ranks end with the same bits, and with the values that Gloo gives to rounding."""
    first, *others = ranks.run(3, trainings, VARIANTS)
    for values in others:
        for variant, our, their in zip(VARIANTS, first, values, strict=True):
            # The last batches of join are one rank's alone, and its buffers are its own.
            assert our[:-3] == their[:-3], variant


def accumulated() -> tuple[list[float], list[float]]:
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(4, 1))
    inputs = torch.full((1, 4), float(dist.get_rank()))
    with model.no_sync():
        model(inputs).sum().backward()
    before = model.module.weight.grad.flatten().tolist()
    model(inputs).sum().backward()
    return before, model.module.weight.grad.flatten().tolist()


def test_no_sync_sums_later(ranks: Ranks) -> None:
    """Within no_sync, gradients stay on their rank; the next backward pass averages all of them."""
    results = ranks.run(2, accumulated)
    assert results == [([0.0] * 4, [1.0] * 4), ([1.0] * 4, [1.0] * 4)]


def sparse() -> str:
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    model = DistributedDataParallel(embedding)
    with pytest.raises((TypeError, RuntimeError)) as caught:
        model(torch.tensor([1])).sum().backward()
    return str(caught.value)


def test_a_sparse_gradient_is_refused(ranks: Ranks) -> None:
    """The error says that psum sums dense tensors, and how to get them."""
    for text in ranks.run(2, sparse):
        assert "is a sparse tensor" in text
        assert "sparse=False" in text
