"""DistributedDataParallel reads sums where an aggregator made them, and nothing else notices."""

import contextlib
import itertools
import os
from typing import Any, Final

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import all_reduce as functional_all_reduce
from torch.nn.parallel import DistributedDataParallel

from psum.planes import MappedSums
from psum.torch import borrowers, bucket_calls
from psum.torch.work import PsumWork
from tests.torch.ranks import Ranks

#: A layer of this size has 1 MiB, and a bucket of its own.
WIDTH: Final = 512
BUCKET_MEGABYTES: Final = 1.0

OFF: Final = {"PSUM_TORCH_LEND_RESULTS": "0"}


class Borrowings:
    """Counts the results that this process is lent, and those of them that it copies in the end: to the tensor that was
    summed, or because their place is needed."""

    def __init__(self) -> None:
        self.lent = self.written = self.detached = 0
        lent, write, detach = PsumWork.lent, PsumWork._write_lent, MappedSums.detach

        def count_lent(work: PsumWork, loan: Any) -> None:
            self.lent += 1
            lent(work, loan)

        def count_written(work: PsumWork) -> None:
            self.written += bool(work._lent)
            write(work)

        def count_detached(sums: MappedSums) -> None:
            self.detached += 1
            detach(sums)

        MappedSums.detach = count_detached  # type: ignore[method-assign,assignment]
        PsumWork.lent = count_lent  # type: ignore[method-assign,assignment]
        PsumWork._write_lent = count_written  # type: ignore[method-assign,assignment]


class Net(torch.nn.Module):  # type: ignore[misc]
    """Layers with one bucket each: the first is larger than the others, and one may be left out."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        sizes = [2 * WIDTH, *[WIDTH] * layers]
        self.layers = torch.nn.ModuleList(
            [torch.nn.Linear(inner, outer, bias=False) for inner, outer in itertools.pairwise(sizes)]
        )
        self.leaves_out = False

    def forward(self, values: torch.Tensor) -> Any:
        for number, layer in enumerate(self.layers):
            if not (self.leaves_out and number == 1):
                values = torch.tanh(layer(values))
        return values.pow(2).mean()


def trained(options: dict[str, Any]) -> list[bytes]:
    """Train some steps. Returns the bits of all parameters."""
    torch.manual_seed(0)
    net = Net(2)
    model = DistributedDataParallel(net, bucket_cap_mb=BUCKET_MEGABYTES, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = torch.Generator().manual_seed(dist.get_rank())
    for step in range(4):
        net.leaves_out = options.get("find_unused_parameters", False) and step % 2 == 1
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        with model.no_sync() if step == 1 and not options.get("static_graph") else contextlib.nullcontext():
            model(torch.randn(4, 2 * WIDTH, generator=data)).backward()
        if step == 1:
            model(torch.randn(4, 2 * WIDTH, generator=data)).backward()
        optimizer.step()
    return [parameter.detach().numpy().tobytes() for parameter in net.parameters()]


OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "plain": {},
    "view": {"gradient_as_bucket_view": True},
    "unused": {"find_unused_parameters": True},
    "static": {"static_graph": True},
}


def trainings() -> tuple[dict[str, list[bytes]], dict[str, tuple[int, int]]]:
    """Train with each of the options. Returns the parameters, and how many results were lent and copied."""
    borrowings = Borrowings()
    parameters, counts = {}, {}
    for name, options in OPTIONS.items():
        before = borrowings.lent, borrowings.written
        parameters[name] = trained(options)
        counts[name] = borrowings.lent - before[0], borrowings.written - before[1]
    return parameters, counts


def test_no_bit_of_a_training_depends_on_it(ranks: Ranks) -> None:
    """With it and without it, trainings end with the same bits, with options of DistributedDataParallel. Sums are
    lent where gradients have memory of their own, and none is copied to the bucket after all."""
    (ours, counts), (theirs, _) = ranks.run(2, trainings)
    (without, none), _ = ranks.run(2, trainings, environ=OFF)
    assert ours == theirs == without
    assert {lent for lent, _ in none.values()} == {0}
    assert {name for name, (lent, _) in counts.items() if lent == 0} == {"view"}
    assert {written for _, written in counts.values()} == {0}


def equal_buckets(layers: int, first: int) -> tuple[list[bytes], list[int], list[int]]:
    """Train a network whose buckets have one size, but for that of the first layer. Returns its parameters, and how
    many sums were lent in each step, and how many of those were copied because their place was needed."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(first, WIDTH, bias=False), *[torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)]
    )
    model = DistributedDataParallel(net, bucket_cap_mb=BUCKET_MEGABYTES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = torch.Generator().manual_seed(dist.get_rank())
    borrowings = Borrowings()
    lent, detached = [], []
    for _ in range(24):
        before = borrowings.lent, borrowings.detached
        model(torch.randn(4, first, generator=data)).pow(2).mean().backward()
        lent.append(borrowings.lent - before[0])
        detached.append(borrowings.detached - before[1])
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().numpy().tobytes() for parameter in net.parameters()], lent, detached


def test_each_bucket_of_a_pass_has_a_sum_of_its_own(ranks: Ranks) -> None:
    """Many buckets have one size, and one has another. As soon as the passes repeat themselves, all sums are lent, none
    takes the place of another of the same pass, and none is copied."""
    (ours, lent, detached), (theirs, *_) = ranks.run(2, equal_buckets, 8, 2 * WIDTH)
    assert ours == theirs == ranks.run(2, equal_buckets, 8, 2 * WIDTH, environ=OFF)[0][0]
    assert lent[-4:] == [9] * 4
    assert detached[-4:] == [0] * 4


def test_buckets_that_share_keys_have_each_their_own_sum(ranks: Ranks) -> None:
    """If all buckets have one size, nothing tells where a pass begins. A sum is then still lent when the next one of
    its key is made. It is copied, and after some times the key lends nothing for a while."""
    (ours, lent, detached), (theirs, *_) = ranks.run(2, equal_buckets, 11, WIDTH)
    assert ours == theirs == ranks.run(2, equal_buckets, 11, WIDTH, environ=OFF)[0][0]
    assert 0 < sum(detached) < sum(lent) < 24 * 12 / 2


def uneven_inputs() -> list[bytes]:
    """Train with fewer steps on one rank than on the other, which the first one shadows. Returns the parameters."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(2 * WIDTH, WIDTH, bias=False),
        *[torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(8)],
    )
    model = DistributedDataParallel(net, bucket_cap_mb=BUCKET_MEGABYTES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.Generator().manual_seed(dist.get_rank())
    for steps in ((1, 3), (5, 3)):
        with model.join():
            for _ in range(steps[dist.get_rank()]):
                model(torch.randn(4, 2 * WIDTH, generator=data)).pow(2).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
    return [parameter.detach().numpy().tobytes() for parameter in net.parameters()]


def test_a_rank_that_has_joined_takes_part(ranks: Ranks) -> None:
    """It sums zeros outside of a backward pass, and nothing is lent to it. All ranks use the same keys all the same."""
    ours, theirs = ranks.run(2, uneven_inputs)
    assert ours == theirs == ranks.run(2, uneven_inputs, environ=OFF)[0]


def others() -> tuple[int, list[float]]:
    """What else code in C++ and in a backward pass may ask for. Returns how many results were lent."""
    borrowings = Borrowings()
    model = DistributedDataParallel(Net(1), bucket_cap_mb=BUCKET_MEGABYTES)
    values = [torch.full((1 << 19,), dist.get_rank() + 1.0) for _ in range(4)]
    found: list[float] = []

    def hook(_: torch.Tensor) -> None:
        work = dist.all_reduce(values[0], async_op=True)
        (future_value,) = work.get_future().wait()
        assert future_value.data_ptr() == values[0].data_ptr()
        dist.all_reduce(values[1])
        found.extend(functional_all_reduce(values[2], "sum", dist.group.WORLD)[:1].tolist())

    weight = torch.zeros(1, requires_grad=True)
    weight.register_hook(hook)
    weight.sum().backward()
    assert borrowings.lent == 0
    # As from code in C++ that the backward pass runs.
    with lent_to_this_code():
        works = [dist.group.WORLD.allreduce([values[3]])]
        works[0].wait()
    assert works[0].get_future().wait()[0].data_ptr() == values[3].data_ptr()
    found += [float(value[-1]) for value in (values[0], values[1], values[3])]
    polled = torch.full((1 << 19,), dist.get_rank() + 1.0)
    with lent_to_this_code():
        work = dist.group.WORLD.allreduce([polled])
    while not work.is_completed():
        pass
    found.append(float(polled[0]))
    late = torch.full((1 << 19,), dist.get_rank() + 1.0)
    with lent_to_this_code():
        work = dist.group.WORLD.allreduce([late])
    (view,) = work.get_future().wait()
    assert view.data_ptr() != late.data_ptr()
    assert late[0] == dist.get_rank() + 1
    work.wait()
    # The view is kept while the keys of its kind are used again.
    for _ in range(4):
        dist.all_reduce(torch.ones(1 << 19))
    found += [float(late[0]), float(view[0])]
    del model
    return borrowings.lent, found


@contextlib.contextmanager
def lent_to_this_code() -> Any:
    """Lets the calls of this process pass for those of code in C++."""
    tells, bucket_calls.is_of_backward = bucket_calls.is_of_backward, lambda caller: True
    try:
        yield
    finally:
        bucket_calls.is_of_backward = tells


def test_all_other_calls_find_the_result_in_place(ranks: Ranks) -> None:
    """Calls from Python in a backward pass, functional collectives, and works that are waited for or polled."""
    assert ranks.run(2, others) == [(3, [3.0] * 7)] * 2


def forked() -> bool:
    """Fork while sums are lent, as a DataLoader does. Returns whether the training went on as if nothing were."""
    model = DistributedDataParallel(Net(2), bucket_cap_mb=BUCKET_MEGABYTES)
    for _ in range(3):
        model(torch.ones(1, 2 * WIDTH)).backward()
        pid = os.fork()
        if pid == 0:
            del model
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    return all(np.isfinite(parameter.grad.numpy()).all() for parameter in model.parameters())


def test_a_fork_does_not_matter(ranks: Ranks) -> None:
    """The child has no lent memory, and drops what it does not have."""
    assert ranks.run(2, forked) == [True, True]


def destroyed() -> list[float]:
    """Keep a lent sum beyond the group, and beyond the gradients."""
    DistributedDataParallel(Net(1), bucket_cap_mb=BUCKET_MEGABYTES)
    keeper = DistributedDataParallel(Net(1), bucket_cap_mb=BUCKET_MEGABYTES)
    value = torch.full((1 << 19,), dist.get_rank() + 1.0)
    with lent_to_this_code():
        work = dist.group.WORLD.allreduce([value])
    (view,) = work.get_future().wait()
    assert view.data_ptr() != value.data_ptr()
    del keeper, work
    dist.destroy_process_group()
    return [float(view[0]), float(view[-1])]


def test_a_sum_outlives_its_group(ranks: Ranks) -> None:
    """Whoever has it may read it after destroy_process_group."""
    assert ranks.run(2, destroyed) == [[3.0, 3.0]] * 2


def test_small_and_whole_numbers_are_not_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only floating point tensors of 1 MiB and more, in contiguous memory."""
    monkeypatch.setattr(borrowers, "_reads_only", lambda group: True)
    wide = torch.zeros(borrowers.LEAST_BYTES // 4)
    lent = {
        "wide": wide,
        "small": wide[:-1],
        "whole numbers": wide.int(),
        "not contiguous": torch.zeros(2, borrowers.LEAST_BYTES // 4).t(),
    }
    assert [name for name, tensor in lent.items() if borrowers.may_borrow(object(), tensor)] == ["wide"]


def test_only_groups_whose_models_only_read_sums_are_lent_to() -> None:
    """Without a DistributedDataParallel of the group, nothing is known of who asks."""
    assert not borrowers.may_borrow(object(), torch.zeros(borrowers.LEAST_BYTES // 4))
