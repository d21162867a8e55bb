"""What ranks do in the tests of this folder, each in a process of its own."""

import contextlib
import os
import runpy
import tempfile
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_wrapper
from torch.nn.parallel import DistributedDataParallel

import psum.torch
from psum.client import ConfigurationError, PsumError


def join(rank: int, size: int) -> None:
    """Join the job without torch.distributed."""
    describe(rank, size)
    psum.torch.init()


def describe(rank: int, size: int) -> None:
    """Set what `psum launch` sets."""
    for name, value in (("RANK", rank), ("NUM_WORKERS", size), ("LOCAL_RANK", rank), ("LOCAL_SIZE", size)):
        os.environ[f"PSUM_{name}"] = str(value)
    os.environ["PSUM_RELAY"] = "off"


def operations(_: str, rank: int, size: int) -> None:
    """Sums and averages of tensors, in all forms."""
    join(rank, size)
    assert (psum.torch.rank(), psum.torch.size()) == (rank, size)
    assert (psum.torch.local_rank(), psum.torch.local_size()) == (rank, size)
    mine = torch.arange(3.0) + rank
    mean = torch.arange(3.0) + (size - 1) / 2
    assert torch.equal(psum.torch.push_pull(mine, name="a"), mean)
    assert torch.equal(mine, torch.arange(3.0) + rank)
    assert torch.equal(psum.torch.push_pull(mine, average=False), mean * size)
    assert psum.torch.push_pull(torch.tensor(rank), average=False, name="count").item() == size * (size - 1) // 2
    assert torch.equal(psum.torch.push_pull(mine, name="half", compression=psum.torch.Compression.fp16), mean)
    handles = [psum.torch.push_pull_async(mine * k, name=f"k{k}", priority=-k) for k in range(5)]
    for k, handle in enumerate(handles):
        assert torch.equal(psum.torch.synchronize(handle), mean * k)
        assert psum.torch.poll(handle)
    grid = (torch.arange(6.0).view(2, 3) + rank).t()
    assert psum.torch.push_pull_inplace(grid, name="grid") is grid
    assert torch.equal(grid, (torch.arange(6.0).view(2, 3) + (size - 1) / 2).t())
    handle = psum.torch.push_pull_async_inplace(mine, name="b")
    assert psum.torch.synchronize(handle) is mine
    assert torch.equal(mine, mean)
    waits_in_psums_thread(rank)
    weight = torch.full((2,), float(rank + 1), requires_grad=True)
    psum.torch.push_pull(weight * 2, average=False, name="c").sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.full((2,), 2.0 * size))
    psum.torch.shutdown()


def waits_in_psums_thread(rank: int) -> None:
    """A callback of an operation that waits for another one, on rank 0, gets an error instead of waiting for itself."""
    values, caught = torch.zeros(1), Future[str]()

    def callback(_: Any) -> None:
        try:
            psum.torch.push_pull(values, name="inner")
        except RuntimeError as error:
            caught.set_result(str(error))

    if rank == 0:
        # The other rank begins it only after the callback is there. So the callback runs in psum's thread.
        psum.torch.push_pull_async(values, name="outer").outcome.add_done_callback(callback)
        psum.torch.push_pull(values, name="the callback is there")
        assert "it would wait for itself" in caught.result(20)
    else:
        for name in ("the callback is there", "outer", "inner"):
            psum.torch.push_pull(values, name=name)


def broadcasts(_: str, rank: int, size: int) -> None:
    """All ranks get one rank's parameters, buffers, optimizer state and objects."""
    join(rank, size)
    for root in range(size):
        torch.manual_seed(10 * root + rank)
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1 * (rank + 1))
        if rank == root:
            net(torch.randn(5, 3)).sum().backward()
            optimizer.step()
        psum.torch.broadcast_parameters(net.state_dict(), root_rank=root)
        psum.torch.broadcast_parameters(net.named_parameters(), root_rank=root)
        psum.torch.broadcast_optimizer_state(optimizer, root_rank=root)
        assert optimizer.param_groups[0]["lr"] == 0.1 * (root + 1)
        assert len(optimizer.state) == 6
        state = [net.state_dict(), optimizer.state_dict()]
        theirs = psum.torch.broadcast_object(state, root_rank=root)
        torch.testing.assert_close(theirs, state, rtol=0, atol=0)
        net(torch.ones(5, 3)).sum().backward()
        optimizer.step()
    for value in (None, b"", "x" * 1023, list(range(1000))):
        assert psum.torch.broadcast_object(value if rank == 1 else "other", root_rank=1, name="object") == value
    psum.torch.shutdown()


def train(net: Any, step: Any, rank: int, steps: int = 3) -> list[Any]:
    """Train a network, and return its parameters."""
    generator = torch.Generator().manual_seed(100 + rank)
    for _ in range(steps):
        step(torch.randn(5, 32, generator=generator))
    return values(net)


def values(net: Any) -> list[Any]:
    """The parameters of a network as lists, which processes can exchange."""
    return [parameter.detach().tolist() for parameter in net.parameters()]


def network(rank: int) -> Any:
    """A network whose parameters differ between ranks."""
    torch.manual_seed(rank)
    return torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Tanh()) for _ in range(6)])


def with_parallel_model(rank: int, hook: Any) -> list[Any]:
    """Train with DistributedDataParallel and a communication hook, if there is one."""
    net = network(rank)
    model = DistributedDataParallel(net, bucket_cap_mb=0.01)
    if hook is not None:
        model.register_comm_hook(None, hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(inputs: Any) -> None:
        optimizer.zero_grad()
        model(inputs).pow(2).mean().backward()
        optimizer.step()

    return train(net, step, rank)


def with_distributed_optimizer(rank: int) -> list[Any]:
    """Train with DistributedOptimizer."""
    net = network(rank)
    optimizer = psum.torch.DistributedOptimizer(
        torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), named_parameters=net.named_parameters()
    )
    psum.torch.broadcast_parameters(net.state_dict())

    def step(inputs: Any) -> None:
        optimizer.zero_grad()
        net(inputs).pow(2).mean().backward()
        optimizer.step()

    return train(net, step, rank)


def trainings(method: str, rank: int, size: int) -> dict[str, list[Any]]:
    """Train one network in several ways. Return its parameters by the way."""
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=size)
    results = {
        "gloo": with_parallel_model(rank, None),
        "hook": with_parallel_model(rank, psum.torch.hook()),
        "float16": with_parallel_model(rank, fp16_compress_wrapper(psum.torch.hook())),
        "optimizer": with_distributed_optimizer(rank),
    }
    psum.torch.shutdown()
    dist.destroy_process_group()
    return results


class Parts(torch.nn.Module):  # type: ignore[misc]
    """A network of which a step may leave out the last layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Sequential(*[torch.nn.Linear(16, 16) for _ in range(4)])
        self.last = torch.nn.Linear(16, 16)

    def forward(self, inputs: Any, whole: bool) -> Any:
        """Compute with or without the last layer."""
        inner = self.first(inputs)
        return self.last(inner) if whole else inner


def with_options(rank: int, hooked: bool, *, leaves_out: bool, uneven: bool, **options: bool) -> list[Any]:
    """Train with options of DistributedDataParallel."""
    net = Parts()
    model = DistributedDataParallel(net, bucket_cap_mb=0.002, **options)
    if hooked:
        model.register_comm_hook(None, psum.torch.hook())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(rank)
    with model.join() if uneven else contextlib.nullcontext():
        for step in range(3 + uneven * rank):
            optimizer.zero_grad()
            whole = not leaves_out or (step + rank) % 2 == 0
            # PyTorch has no_sync and static graphs, but not both in the first step.
            for accumulates in (False,) if "static_graph" in options else (True, False):
                with model.no_sync() if accumulates else contextlib.nullcontext():
                    model(torch.randn(5, 16, generator=generator), whole).pow(2).mean().backward()
            optimizer.step()
    return values(net)


def options(method: str, rank: int, size: int) -> list[list[Any]]:
    """Train with several options. Return the parameters with Gloo, and with psum's hook beside it."""
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=size)
    variants: list[dict[str, bool]] = [
        {"leaves_out": True, "uneven": False, "find_unused_parameters": True, "gradient_as_bucket_view": True},
        {"leaves_out": False, "uneven": False, "static_graph": True},
        {"leaves_out": False, "uneven": True, "gradient_as_bucket_view": True},
    ]
    results = [[with_options(rank, hooked, **variant) for variant in variants] for hooked in (False, True)]
    psum.torch.shutdown()
    dist.destroy_process_group()
    return results


def a_rank_that_leaves(method: str, rank: int, size: int) -> list[str]:
    """The last rank leaves the job before its step. Return the errors of the others."""
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=size)
    psum.torch.init()
    net = network(0)
    optimizer = psum.torch.DistributedOptimizer(torch.optim.SGD(net.parameters(), lr=0.1))
    errors = []
    model = DistributedDataParallel(network(0))
    model.register_comm_hook(None, psum.torch.hook())
    for _ in range(2):  # the second one cuts new buckets, by way of Gloo
        model(torch.ones(5, 32)).sum().backward()
    if rank == size - 1:
        psum.torch.shutdown()
    else:
        try:
            model(torch.ones(5, 32)).sum().backward()
        except RuntimeError as error:
            errors.append(str(error))
        try:
            net(torch.ones(5, 32)).sum().backward()
            optimizer.step()
        except PsumError as error:
            errors.append(str(error))
        psum.torch.shutdown()
    dist.barrier()
    dist.destroy_process_group()
    return errors


def beside_a_group(method: str, rank: int, size: int) -> None:
    """With the backend psum, init uses the membership of the default group, and shutdown leaves it alone."""
    dist.init_process_group("psum", init_method=method, rank=rank, world_size=size)
    psum.torch.init()
    assert psum.torch.size() == size
    assert psum.torch.push_pull(torch.ones(1), average=False).item() == size
    psum.torch.shutdown()
    tensor = torch.ones(1)
    dist.all_reduce(tensor)
    assert tensor.item() == size
    dist.destroy_process_group()


def init_before_a_group(method: str, rank: int, size: int) -> str:
    """Call init before init_process_group. Return the error."""
    join(rank, size)
    try:
        dist.init_process_group("psum", init_method=method, rank=rank, world_size=size)
    except ConfigurationError as error:
        return str(error)
    finally:
        psum.torch.shutdown()
    return ""


def script(_: str, rank: int, size: int, text: str) -> Any:
    """Run a script as the main program, and return its `result`."""
    describe(rank, size)
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(text)
        file.flush()
        return runpy.run_path(file.name, run_name="__main__")["result"]
