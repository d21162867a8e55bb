"""Programs for BytePS and Horovod, and the communication hook, on ranks that are processes of their own."""

import pathlib
import re
import shlex
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.torch.byteps import programs
from tests.torch.ranks import Ranks

#: A program for BytePS, with all that such programs have.
BYTEPS_SCRIPT = """
import torch
import byteps.torch as bps

bps.init()
torch.manual_seed(bps.rank())
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * bps.size(), momentum=0.5)
compression = bps.Compression.fp16 if False else bps.Compression.none
optimizer = bps.DistributedOptimizer(
    optimizer,
    named_parameters=model.named_parameters(),
    compression=compression,
    backward_passes_per_step=2,
)
bps.broadcast_parameters(model.state_dict(), root_rank=0)
bps.broadcast_optimizer_state(optimizer, root_rank=0)
inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
targets = inputs.sum(1, keepdim=True)
sampler = torch.utils.data.distributed.DistributedSampler(
    torch.utils.data.TensorDataset(inputs, targets), num_replicas=bps.size(), rank=bps.rank(), shuffle=False
)
losses = []
for epoch in range(3):
    indices = list(sampler)
    for first in range(0, len(indices), 16):
        optimizer.zero_grad()
        for part in (indices[first : first + 8], indices[first + 8 : first + 16]):
            loss = torch.nn.functional.mse_loss(model(inputs[part]), targets[part]) / 2
            loss.backward()
        if epoch == 1:
            optimizer.synchronize()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            with optimizer.skip_synchronize():
                optimizer.step()
        else:
            optimizer.step()
    losses.append(bps.push_pull(loss.detach(), name="avg_loss").item())
result = losses, [parameter.tolist() for parameter in model.parameters()], bps.local_rank()
bps.shutdown()
"""


#: A program for Horovod.
HOROVOD_SCRIPT = """
import torch
import horovod.torch as hvd

hvd.init()
torch.manual_seed(hvd.rank())
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
optimizer = hvd.DistributedOptimizer(
    optimizer, named_parameters=model.named_parameters(), op=hvd.Sum, gradient_predivide_factor=1.0
)
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
model(torch.full((1, 4), float(hvd.rank()))).sum().backward()
optimizer.step()
average = hvd.allreduce(torch.tensor(float(hvd.rank())), name="metric")
total = torch.tensor([hvd.rank()])
hvd.allreduce_(total, op=hvd.Sum)
handles = [hvd.allreduce_async(torch.ones(2), average=False), hvd.allreduce_async_(torch.ones(2), name="x")]
others = [hvd.synchronize(handle).tolist() for handle in handles]
result = average.item(), total.item(), others, model.weight.grad.tolist(), [p.tolist() for p in model.parameters()]
hvd.shutdown()
"""


def plain_byteps_script() -> tuple[list[float], list[Any]]:
    """What BYTEPS_SCRIPT computes with two ranks, in one process with plain torch."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    targets = inputs.sum(1, keepdim=True)
    losses = []
    for epoch in range(3):
        for first in range(0, 32, 16):
            shares, last = [], []
            for rank in range(2):
                indices = list(range(rank, 64, 2))[first : first + 16]
                model.zero_grad()
                for part in (indices[:8], indices[8:]):
                    loss = torch.nn.functional.mse_loss(model(inputs[part]), targets[part]) / 2
                    loss.backward()
                shares.append([parameter.grad.clone() for parameter in model.parameters()])
                last.append(loss.detach())
            for parameter, one, other in zip(model.parameters(), *shares, strict=True):
                parameter.grad = one / 2 + other / 2
            if epoch == 1:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        losses.append((last[0] / 2 + last[1] / 2).item())
    return losses, programs.values(model)


def migrated(text: str) -> str:
    """Change the import line by the command of docs/torch.md."""
    page = (pathlib.Path(__file__).parents[3] / "docs" / "torch.md").read_text()
    (command,) = re.findall(r"^sed -i (-E 's/.*/') train\.py$", page, re.MULTILINE)
    done = subprocess.run(["sed", *shlex.split(command)], input=text, capture_output=True, text=True, check=True)
    assert done.stdout != text
    return done.stdout


def test_a_program_for_byteps(ranks: Ranks) -> None:
    """A program whose import line was changed trains bit for bit as plain torch does, and alike on all ranks."""
    torch.set_num_threads(1)
    losses, parameters = plain_byteps_script()
    for rank, (its_losses, its_parameters, local) in enumerate(
        ranks.run(2, programs.script, migrated(BYTEPS_SCRIPT), initialize=False)
    ):
        assert local == rank
        assert its_losses == losses
        assert its_parameters == parameters


def test_a_program_for_horovod(ranks: Ranks) -> None:
    """A program for Horovod whose import line was changed gets sums and averages, alike on all ranks."""
    first, second = ranks.run(2, programs.script, migrated(HOROVOD_SCRIPT), initialize=False)
    assert first == second
    assert first[:4] == (0.5, 1, [[2.0, 2.0], [1.0, 1.0]], [[1.0] * 4] * 2)


@pytest.mark.parametrize(
    ("program", "size"), [(programs.operations, 2), (programs.broadcasts, 3), (programs.beside_a_group, 2)]
)
def test_programs(ranks: Ranks, program: Callable[..., None], size: int) -> None:
    """Sums, averages and broadcasts give all ranks what they say, alone and beside a process group of psum."""
    ranks.run(size, program, initialize=False)


def test_init_before_a_group(ranks: Ranks) -> None:
    """A process group of psum after init is an error that says how to do both."""
    for text in ranks.run(2, programs.init_before_a_group, initialize=False):
        assert "Call it after that" in text


def test_trainings(ranks: Ranks) -> None:
    """The hook and DistributedOptimizer train bit for bit as DistributedDataParallel on Gloo; ranks are always equal.

    torch's wrapper that sends float16 fits around the hook.
    """
    first, second = ranks.run(2, programs.trainings, initialize=False)
    assert first == second
    assert first["hook"] == first["gloo"]
    assert first["optimizer"] == first["gloo"]
    assert first["float16"] != first["gloo"]
    for parameter, exact in zip(first["float16"], first["gloo"], strict=True):
        torch.testing.assert_close(torch.tensor(parameter), torch.tensor(exact), rtol=1e-2, atol=1e-3)


def test_options_of_the_parallel_model(ranks: Ranks) -> None:
    """With the hook, unused parameters, static graphs, no_sync, views and uneven inputs give the same bits as Gloo."""
    first, second = ranks.run(2, programs.options, initialize=False)
    gloo, hooked = first
    assert hooked == gloo
    assert second == first


def test_a_rank_that_leaves(ranks: Ranks) -> None:
    """If a rank leaves, the others' backward pass with the hook and their step end with an error that names it."""
    errors, _ = ranks.run(2, programs.a_rank_that_leaves, initialize=False)
    assert len(errors) == 2
    for text in errors:
        assert "rank 1" in text
