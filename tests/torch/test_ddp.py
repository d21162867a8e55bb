"""DistributedDataParallel and its relatives on psum give what they give on Gloo."""

import contextlib
import functools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, post_localSGD_hook, powerSGD_hook
from torch.distributed.algorithms.model_averaging import averagers
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from tests.torch.ranks import Ranks

#: Small enough that the network below has several buckets.
BUCKET_MEGABYTES = 0.002

STEPS = 3


class Net(torch.nn.Module):  # type: ignore[misc]
    """Layers of equal sizes, a buffer, and a branch that one step in two leaves out, on each rank another one.

    Args:
        branches: Whether there is such a branch.
        again: Whether the backward pass computes the layers' values again instead of keeping them.
    """

    def __init__(self, *, branches: bool, again: bool) -> None:
        super().__init__()
        self.branches = branches
        self.again = again
        self.layers = torch.nn.ModuleList([torch.nn.Linear(16, 16) for _ in range(4)])
        self.norm = torch.nn.BatchNorm1d(16)
        self.calls = 0

    def forward(self, values: torch.Tensor) -> Any:
        self.calls += 1
        for number, layer in enumerate(self.layers):
            if self.branches and number == 2 and (self.calls + dist.get_rank()) % 2:
                continue
            values = torch.relu(checkpoint(layer, values, use_reentrant=False) if self.again else layer(values))
        return self.norm(values).pow(2).mean()


def bf16(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """PyTorch's hook, which DDP admits by its name on GPUs only."""
    return default_hooks.bf16_compress_hook(group, bucket)


def register_hook(model: DistributedDataParallel, group: Any, variant: str) -> None:
    """Give a model PyTorch's communication hook of that name, if it is one."""
    hooks = {"fp16": default_hooks.fp16_compress_hook, "bf16": bf16}
    if variant in hooks:
        model.register_comm_hook(group, hooks[variant])
    if "powersgd" in variant:
        state = powerSGD_hook.PowerSGDState(group, matrix_approximation_rank=2, start_powerSGD_iter=2)
        hook = powerSGD_hook.powerSGD_hook
        model.register_comm_hook(state, default_hooks.fp16_compress_wrapper(hook) if "fp16" in variant else hook)
    if variant == "local sgd":
        # Averages gradients in the first step only, and parameters in every second one.
        state = post_localSGD_hook.PostLocalSGDState(group, None, 1, post_local_gradient_allreduce=False)
        model.register_comm_hook(state, post_localSGD_hook.post_localSGD_hook)


def optimizer_of(model: DistributedDataParallel, group: Any, variant: str) -> Any:
    """Make the optimizer of a variant."""
    from torch.distributed.optim import PostLocalSGDOptimizer, ZeroRedundancyOptimizer

    if "zero" in variant:
        # With its small epsilon, Adam would make steps of gradients that are nothing but rounding.
        kind = functools.partial(torch.optim.Adam, eps=0.1) if "adam" in variant else torch.optim.SGD
        return ZeroRedundancyOptimizer(model.parameters(), kind, process_group=group, lr=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if variant == "local sgd":
        averager = averagers.PeriodicModelAverager(period=2, warmup_steps=0, process_group=group)
        return PostLocalSGDOptimizer(optimizer, averager)
    return optimizer


def trained(group: Any, variant: str) -> list[torch.Tensor]:
    """Train with a group, and return all parameters and buffers."""
    rank = dist.get_rank()
    torch.manual_seed(rank)
    options: dict[str, Any] = {
        "view": {"gradient_as_bucket_view": True},
        "static": {"static_graph": True},
        "checkpointed": {"static_graph": True},
        "unused": {"find_unused_parameters": True},
        "unused in view": {"find_unused_parameters": True, "gradient_as_bucket_view": True},
    }.get(variant, {})
    net = Net(branches="unused" in variant, again=variant == "checkpointed")
    # Gloo fails if PowerSGD's callbacks of several buckets begin collectives at the same time. torch.compile does not
    # take buckets that are smaller than the first one.
    if ("powersgd" not in variant and variant != "compiled") or "buckets" in variant:
        options["bucket_cap_mb"] = BUCKET_MEGABYTES
    model = DistributedDataParallel(net, process_group=group, **options)
    register_hook(model, group, variant)
    optimizer = optimizer_of(model, group, variant)
    if variant == "compiled":
        model = torch.compile(model, backend="eager")
    inputs = torch.Generator().manual_seed(100 + rank)
    # Ranks have batches of different numbers, which only join allows.
    joins = "join" in variant
    steps = STEPS + rank if joins else STEPS
    # The divisor is the number of ranks, or the number of those that still have batches: DDP's C++ code learns it from
    # the work of a collective, of which the program keeps nothing.
    with model.join(divide_by_initial_world_size=variant == "join") if joins else contextlib.nullcontext():
        for _ in range(steps):
            optimizer.zero_grad()
            for accumulates in (True, True, False) if variant == "accumulated" else (False,):
                with model.no_sync() if accumulates else contextlib.nullcontext():
                    with torch.autocast("cpu", torch.bfloat16, enabled=variant == "autocast"):
                        loss = model(torch.randn(8, 16, generator=inputs))
                    loss.backward()
            optimizer.step()
    if "zero" in variant:
        # For a checkpoint, rank 0 gathers all parts of the optimizer's state.
        optimizer.consolidate_state_dict(to=0)
        assert rank or len(optimizer.state_dict()["state"]) == ("adam" in variant) * len(list(net.parameters()))
    return [value.detach().clone() for value in (*net.parameters(), *net.buffers())]


def trainings(variants: list[str]) -> list[list[list[float]]]:
    """Train with psum and with Gloo. Returns the values after psum's trainings."""
    gloo = dist.new_group(backend="gloo")
    values = []
    for variant in variants:
        ours = trained(dist.group.WORLD, variant)
        values.append([our.double().flatten().tolist() for our in ours])
        if "buckets" in variant:
            continue
        theirs = trained(gloo, variant)
        # Gloo adds up in the element type, psum in float32.
        atol = {"fp16": 1e-3, "bf16": 1e-2}.get(variant.split()[0], 1e-5)
        for our, their in zip(ours, theirs, strict=True):
            assert torch.allclose(our, their, rtol=1e-4, atol=atol), f"{variant}: {our} {their}"
    return values


VARIANTS = [
    *("plain", "view", "static", "checkpointed", "unused", "unused in view", "accumulated", "autocast", "compiled"),
    *("join", "join, by those left"),
    *("fp16", "bf16", "powersgd", "powersgd in buckets", "fp16 powersgd"),
    *("local sgd", "zero", "zero with adam"),
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
