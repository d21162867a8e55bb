"""The collectives of a group, against what they are defined to give."""

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from psum.client import DisagreementError, fetch_status
from psum.torch import keys
from psum.torch.tensors import ELEMENT_TYPES
from tests.torch.ranks import Ranks


def value(rank: int, dtype: torch.dtype = torch.float32, size: int = 3) -> torch.Tensor:
    """A rank's tensor."""
    numbers = torch.arange(1, size + 1) * (rank + 1)
    return numbers % 2 == 1 if dtype is torch.bool else numbers.to(dtype)


def reductions() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    for dtype in ELEMENT_TYPES:
        tensors = [value(r, dtype) for r in range(size)]
        tensor = tensors[rank].clone()
        dist.all_reduce(tensor)
        expected = torch.stack(tensors).any(0) if dtype is torch.bool else torch.stack(tensors).sum(0).to(dtype)
        assert tensor.equal(expected), dtype
    every = torch.stack([value(r) for r in range(size)])
    for op, expected in {
        dist.ReduceOp.AVG: every.mean(0),
        dist.ReduceOp.MIN: every.min(0).values,
        dist.ReduceOp.MAX: every.max(0).values,
        dist.ReduceOp.PRODUCT: every.prod(0),
    }.items():
        tensor = value(rank)
        dist.all_reduce(tensor, op)
        assert tensor.equal(expected), op
    bits = torch.tensor([1 << rank, 3], dtype=torch.int16)
    dist.all_reduce(bits, dist.ReduceOp.BXOR)
    assert bits.tolist() == [(1 << size) - 1, 3 if size % 2 else 0]
    # A transposed tensor, one without dimensions, an empty one, and one with a gradient.
    transposed = torch.arange(6.0).view(2, 3).t()
    dist.all_reduce(transposed)
    assert transposed.equal(size * torch.arange(6.0).view(2, 3).t())
    scalar = torch.tensor(2.0)
    dist.all_reduce(scalar)
    assert scalar.item() == 2.0 * size
    dist.all_reduce(torch.empty(0, 4))
    parameter = torch.nn.Parameter(torch.ones(2))
    dist.all_reduce(parameter.data)
    complex_numbers = torch.tensor([1 + 2j])
    dist.all_reduce(complex_numbers)
    assert complex_numbers.item() == size * (1 + 2j)
    # Only the root's tensor changes.
    tensor = value(rank)
    dist.reduce(tensor, dst=1)
    assert tensor.equal(every.sum(0) if rank == 1 else value(rank))
    output = torch.empty(2)
    dist.reduce_scatter(output, [torch.full((2,), float(r + rank)) for r in range(size)])
    assert output.tolist() == [sum(rank + r for r in range(size))] * 2
    output = torch.empty(2)
    dist.reduce_scatter_tensor(output, torch.arange(2.0 * size), dist.ReduceOp.MAX)
    assert output.tolist() == [2.0 * rank, 2.0 * rank + 1]


def movements() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    for root in range(size):
        for dtype in (*ELEMENT_TYPES, torch.int16, torch.complex64):
            tensor = value(rank, dtype)
            dist.broadcast(tensor, root)
            assert tensor.equal(value(root, dtype))
        view = value(rank, size=6).view(2, 3).t()
        dist.broadcast(view, root)
        assert view.equal(value(root, size=6).view(2, 3).t())
        bits = torch.tensor([float("nan"), -0.0])
        tensor = bits.clone() if rank == root else torch.ones(2)
        dist.broadcast(tensor, root)
        assert tensor.view(torch.int32).equal(bits.view(torch.int32))
        output = torch.empty(3)
        dist.scatter(output, [value(r) for r in range(size)] if rank == root else None, root)
        assert output.equal(value(rank))
        outputs = [torch.empty(3) for _ in range(size)] if rank == root else None
        dist.gather(value(rank), outputs, root)
        assert outputs is None or all(out.equal(value(r)) for r, out in enumerate(outputs))
    for dtype in (*ELEMENT_TYPES, torch.int16):
        outputs = [torch.empty(3, dtype=dtype) for _ in range(size)]
        dist.all_gather(outputs, value(rank, dtype))
        assert all(out.equal(value(r, dtype)) for r, out in enumerate(outputs))
    whole = torch.empty(3 * size)
    dist.all_gather_into_tensor(whole, value(rank))
    assert whole.equal(torch.cat([value(r) for r in range(size)]))
    dist.barrier()


def objects() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    for length in (1, 50, 51, 1000):
        mine = {"rank": rank, "text": "x" * (length + rank)}
        every = [{"rank": r, "text": "x" * (length + r)} for r in range(size)]
        gathered: list[Any] = [None] * size
        dist.all_gather_object(gathered, mine)
        assert gathered == every
        box = [mine]
        dist.broadcast_object_list(box, src=1)
        assert box == [every[1]]
        at_root: list[Any] | None = [None] * size if rank == 0 else None
        dist.gather_object(mine, at_root)
        assert at_root is None or at_root == every
        out: list[Any] = [None]
        dist.scatter_object_list(out, every if rank == 0 else [None] * size)
        assert out == [every[rank]]


def again_of(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor + 3
    dist.all_reduce(tensor)
    return tensor


def works() -> None:
    size = dist.get_world_size()
    tensors = [torch.ones(1000) for _ in range(20)]
    begun = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    assert all(work.wait() for work in begun)
    assert all(work.is_completed() and work.is_success() for work in begun)
    assert all(tensor.equal(torch.full((1000,), float(size))) for tensor in tensors)

    # A callback may begin a collective and wait for it, also in its callback.
    def again(future: Any) -> Any:
        # Whether the program or a callback begins a collective first differs between ranks.
        tensor = future.value()[0] + 0
        inner = dist.all_reduce(tensor, async_op=True).get_future()
        return inner.then(lambda done: done.value()[0] + 1).wait()

    futures = [dist.all_reduce(torch.ones(3), async_op=True).get_future().then(again) for _ in range(10)]
    assert all(future.wait().tolist() == [size * size + 1.0] * 3 for future in futures)
    # On some ranks the callback then runs at once in this thread, in the middle of the program.
    for late in range(10):
        work = dist.all_reduce(torch.ones(3), async_op=True)
        future = work.get_future()
        if late % size == dist.get_rank():
            future.wait()
        then = future.then(lambda done: done.value()[0]).then(lambda done: again_of(done.value()))
        tensor = torch.full((3,), 2.0)
        dist.all_reduce(tensor)
        assert tensor.tolist() == [2.0 * size] * 3
        assert then.wait().tolist() == [size * size + 3.0 * size] * 3
    work = dist.all_reduce(torch.ones(1), dist.ReduceOp.AVG, async_op=True)
    assert work.wait(timedelta(seconds=20))
    assert work.get_future().done()
    assert work.get_future().wait()[0].item() == 1.0


def keys_on_the_aggregator() -> int:
    client: Any = dist.group.WORLD.client  # type: ignore[union-attr, unused-ignore]
    [job] = fetch_status(client.settings.aggregators[0], job=client.settings.job).jobs
    return job.keys


def sizes() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    # Fewer kinds than in reality have keys of their own.
    pytest.MonkeyPatch().setattr(keys, "MOST_KINDS", 4)
    for elements in range(1, 200, 7):
        tensor = value(rank, size=elements)
        dist.all_reduce(tensor, dist.ReduceOp.AVG)
        assert tensor.equal(torch.stack([value(r, size=elements) for r in range(size)]).mean(0))
        view = value(rank, torch.int64, 2 * elements).view(2, elements).t()
        root = elements % size
        dist.broadcast(view, root)
        assert view.equal(value(root, torch.int64, 2 * elements).view(2, elements).t())
        output = torch.empty(elements)
        dist.scatter(output, [value(r, size=elements) for r in range(size)] if rank == root else None, root)
        assert output.equal(value(rank, size=elements))
        outputs = [torch.empty(elements) for _ in range(size)]
        dist.all_gather(outputs, value(rank, size=elements))
        assert all(out.equal(value(r, size=elements)) for r, out in enumerate(outputs))
    before = keys_on_the_aggregator()
    tensors = [torch.ones(elements) for elements in range(200, 500)]
    for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
        work.wait()
    assert all(tensor.equal(torch.full(tensor.shape, float(size))) for tensor in tensors)
    # Six rounded sizes take turns on a few keys each.
    assert keys_on_the_aggregator() - before < 60
    # Disagreements are found as before.
    with pytest.raises(DisagreementError, match="rank 1: 484 bytes, rank 2: 488 bytes"):
        dist.all_reduce(torch.ones(120 + rank))
    if rank == 1:
        dist.broadcast(torch.ones(120), 1)
    else:
        with pytest.raises(DisagreementError, match="rank 1 gave 480 bytes"):
            dist.broadcast(torch.ones(121), 1)
    dist.barrier()


def groups() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    parts = [dist.new_group([0, 2]), dist.new_group([1]), dist.new_group(list(range(size)))]
    for part, members in zip(parts, ([0, 2], [1], list(range(size))), strict=True):
        if rank in members:
            tensor = torch.tensor([float(rank)])
            dist.all_reduce(tensor, group=part)
            assert tensor.item() == sum(members)
            tensor = torch.tensor([float(rank)])
            dist.broadcast(tensor, members[-1], group=part)
            assert tensor.item() == members[-1]
    if rank in (0, 2):
        dist.destroy_process_group(parts[0])
    assert dist.get_backend() == "psum"
    dist.barrier()


def unsupported() -> list[str]:
    tensor = torch.ones(2)
    texts = []
    calls: tuple[Any, ...] = (
        lambda: dist.send(tensor, 1 - dist.get_rank()),
        lambda: dist.recv(tensor, 1 - dist.get_rank()),
        lambda: dist.all_to_all([tensor, tensor], [tensor, tensor]),
        lambda: dist.all_to_all_single(tensor, tensor),
    )
    for call in calls:
        with pytest.raises(NotImplementedError) as caught:
            call()
        texts.append(str(caught.value))
    return texts


@pytest.mark.parametrize("program", [reductions, movements, objects, works, sizes, groups])
def test_collectives(ranks: Ranks, program: Any) -> None:
    """Three ranks get what torch.distributed documents, for every dtype, root and kind of tensor."""
    ranks.run(3, program)


def test_what_psum_lacks_names_backends_that_have_it(ranks: Ranks) -> None:
    """send, recv and all_to_all raise an error at once that says which backends have them."""
    for texts in ranks.run(2, unsupported):
        assert all("new_group(backend='gloo')" in text for text in texts)
