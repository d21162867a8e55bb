"""PyTorch in elastic jobs: what collectives give when a rank was killed, and the mean of gradients stays the mean."""

import hashlib
import os
import signal
import time
import unittest
from typing import Any, Final

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import psum.torch
from psum.client import ConfigurationError, InvalidError, WorkerLostError
from tests.torch.ranks import Ranks

#: The rank that is killed.
LOST: Final = 1


def die_if_lost() -> None:
    """Kill this process if its rank is the one to be lost. All ranks have begun by then."""
    dist.barrier()
    if dist.get_rank() == LOST:
        os.kill(os.getpid(), signal.SIGKILL)


def value(rank: int) -> torch.Tensor:
    return torch.tensor([1.0, -2.0]) * (rank + 1)


def collectives() -> bool:
    rank, size = dist.get_rank(), dist.get_world_size()
    die_if_lost()
    living = [r for r in range(size) if r != LOST]
    every = torch.stack([value(r) for r in living])
    for op, expected in {
        dist.ReduceOp.SUM: every.sum(0),
        dist.ReduceOp.AVG: every.mean(0),
        dist.ReduceOp.MIN: every.min(0).values,
        dist.ReduceOp.MAX: every.max(0).values,
        dist.ReduceOp.PRODUCT: every.prod(0),
    }.items():
        tensor = value(rank)
        dist.all_reduce(tensor, op)
        assert tensor.equal(expected), (op, tensor)
    whole = torch.tensor([7 * (rank + 1)])
    dist.all_reduce(whole, dist.ReduceOp.AVG)
    assert whole.item() == sum(7 * (r + 1) for r in living) // len(living)
    output = torch.empty(1)
    dist.reduce_scatter_tensor(output, torch.arange(float(size)), dist.ReduceOp.AVG)
    assert output.item() == rank
    outputs = [torch.full((2,), 5.0) for _ in range(size)]
    dist.all_gather(outputs, value(rank))
    assert all(outputs[r].equal(value(r) if r in living else torch.zeros(2)) for r in range(size))
    objects: list[Any] = [0] * size
    dist.all_gather_object(objects, f"rank {rank}")
    assert objects == [f"rank {r}" if r in living else None for r in range(size)]
    # Nobody gets the results of these.
    dist.gather(value(rank), None, dst=LOST)
    dist.reduce(value(rank), dst=LOST)
    dist.barrier()
    last = size - 1
    tensor = value(rank)
    dist.broadcast(tensor, last)
    assert tensor.equal(value(last))
    output = torch.empty(2)
    dist.scatter(output, [value(r) for r in range(size)] if rank == last else None, src=last)
    assert output.equal(value(rank))
    with pytest.raises(WorkerLostError, match=f"rank {LOST} was lost before it had given its value"):
        dist.broadcast(value(rank), LOST)
    store = [rank] if rank == last else [None]
    dist.broadcast_object_list(store, src=last)
    assert store == [last]
    for root, expected in ((last, value(last)), (LOST, None)):
        parameters = {"w": value(rank)}
        psum.torch.init()
        if expected is not None:
            psum.torch.broadcast_parameters(parameters, root_rank=root)
            assert parameters["w"].equal(expected)
        else:
            with pytest.raises(WorkerLostError, match=f"rank {LOST} was lost"):
                psum.torch.broadcast_parameters(parameters, root_rank=root, prefix="again.")
    return True


def test_collectives_leave_lost_ranks_out(elastic_ranks: Ranks) -> None:
    """After a kill -9, reductions combine what living ranks give, gathers have zeros, and other roots still work."""
    assert elastic_ranks.run(4, collectives, failing=True) == [True, None, True, True]


class Weights(torch.nn.Module):  # type: ignore[misc]
    """A network whose gradients are known: those of its weights are the input."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.first = torch.nn.Parameter(torch.zeros(elements))
        self.second = torch.nn.Parameter(torch.zeros(elements))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return (self.first * values).sum() + (self.second * values).sum()


def bf16(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """PyTorch's hook, which DDP admits by its name on GPUs only."""
    return default_hooks.bf16_compress_hook(group, bucket)


#: Each rank's gradients.
GRADIENTS: Final = (3.0, 9.0, 27.0)


def trainings() -> list[bytes]:
    """Train with known gradients, in every way that averages them."""
    rank = dist.get_rank()
    psum.torch.init()
    elements = 300_000
    means: list[Any] = []

    def add(model: Any) -> None:
        module = getattr(model, "module", model)
        for parameter in (module.first, module.second):
            assert parameter.grad.eq(parameter.grad[0]).all()
            means.append(parameter.grad[0].clone())
            parameter.grad = None

    def with_hook(hook: Any, state: Any = None, **options: Any) -> Any:
        model = DistributedDataParallel(Weights(elements), bucket_cap_mb=1, **options)
        if hook is not None:
            model.register_comm_hook(state, hook)
        return model

    models = [
        with_hook(None),
        with_hook(None, gradient_as_bucket_view=True),
        with_hook(psum.torch.hook()),
        with_hook(default_hooks.fp16_compress_hook),
        with_hook(bf16),
        with_hook(powerSGD_hook.powerSGD_hook, powerSGD_hook.PowerSGDState(None, 1, start_powerSGD_iter=2)),
    ]
    alone = Weights(elements)
    optimizer = psum.torch.DistributedOptimizer(
        torch.optim.SGD(alone.parameters(), lr=0.0), alone.named_parameters(), psum.torch.Compression.fp16
    )
    for step in range(4):
        if step == 2:
            die_if_lost()
        living = GRADIENTS if step < 2 else GRADIENTS[:LOST] + GRADIENTS[LOST + 1 :]
        for number, model in enumerate(models):
            model(torch.full((elements,), GRADIENTS[rank])).backward()
            add(model)
            is_exact = number < 3
            for mean in means[-2:]:
                expected = torch.tensor(sum(living) / len(living))
                torch.testing.assert_close(mean, expected, rtol=1e-6 if is_exact else 1e-2, atol=0)
        alone(torch.full((elements,), GRADIENTS[rank])).backward()
        optimizer.synchronize()
        for mean in (alone.first.grad[0], alone.second.grad[0]):
            means.append(mean.clone())
            torch.testing.assert_close(mean, torch.tensor(sum(living) / len(living)), rtol=1e-3, atol=0)
        optimizer.step()
        optimizer.zero_grad()
    # A sum is a sum, and so are integers; an average is the mean of those that are there.
    tensor = torch.full((3,), GRADIENTS[rank])
    assert psum.torch.push_pull(tensor, average=False).tolist() == [30.0] * 3
    assert psum.torch.push_pull(tensor, average=True).allclose(torch.tensor(15.0))
    counts = torch.full((3,), rank + 1)
    dist.all_reduce(counts)
    assert counts.tolist() == [4] * 3
    # Another model can still be made.
    model = DistributedDataParallel(Weights(3))
    model(torch.full((3,), GRADIENTS[rank])).backward()
    assert model.module.first.grad.allclose(torch.tensor(15.0))
    return [mean.numpy().tobytes() for mean in means]


def test_the_mean_stays_the_mean(elastic_ranks: Ranks) -> None:
    """Gradients of known values have the mean of those that contributed, by DDP, its hooks, and DistributedOptimizer.

    Survivors have the same bits.
    """
    first, lost, last = elastic_ranks.run(3, trainings, failing=True)
    assert lost is None
    assert isinstance(first, list), first
    assert first == last


def refusals() -> None:
    with pytest.raises(ConfigurationError, match="has the default group only"):
        dist.new_group([0])
    with pytest.raises(NotImplementedError, match=r"Call torch\.distributed\.barrier"):
        dist.group.WORLD.monitored_barrier()
    net = torch.nn.Linear(1, 1)
    for name in ("step", "members", "model", "communication"):
        with pytest.raises(TypeError, match=f"a value of an ElasticState cannot be called '{name}'"):
            psum.torch.ElasticState(net, **{name: torch.zeros(1)})
    with unittest.TestCase().assertLogs("psum.torch", "WARNING") as logs:
        state = psum.torch.ElasticState(DistributedDataParallel(net, static_graph=True))
    assert "nobody can join this job: DistributedDataParallel with static_graph=True sums in" in logs.output[0]
    with pytest.raises(InvalidError, match=r"entry 'model' of the elastic state could not be saved, .*static_graph"):
        state._save()


def test_what_elastic_jobs_lack(elastic_ranks: Ranks) -> None:
    """Groups over parts of the ranks, and barriers through a store, say why there are none. A state says at once if it
    cannot be given to others, or has a value with a name that means something else.
    """
    elastic_ranks.run(1, refusals)


class Reversed(torch.nn.Module):  # type: ignore[misc]
    """Layers that are used in another order than DistributedDataParallel expects, so it changes its buckets."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(12 + n, 12 + (n - 1) % 6) for n in range(6)])
        self.norm = torch.nn.BatchNorm1d(17)

    def forward(self, values: torch.Tensor) -> Any:
        for layer in reversed(self.layers):
            values = torch.tanh(layer(values))
        return self.norm(values).pow(2).mean() + values.mean()


def digest_of(tensors: Any) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def joining(lost: int, kill_at: int, passes: int) -> tuple[bool, dict[int, str]]:
    """Train in three ways. A rank is killed in a step. Its replacement joins, and they go on for a while.

    Args:
        lost: The rank that is killed.
        kill_at: The step.
        passes: How many forward and backward passes a step has.

    Returns:
        Whether this process has joined, and a hash of everything after each step.
    """
    torch.manual_seed(7)
    psum.torch.init()
    nets = [Reversed(), Reversed(), Reversed().to(torch.bfloat16)]
    models = [
        DistributedDataParallel(nets[0], bucket_cap_mb=0.001, gradient_as_bucket_view=passes > 1),
        DistributedDataParallel(nets[1], bucket_cap_mb=0.001, find_unused_parameters=passes > 1),
    ]
    models[1].register_comm_hook(None, psum.torch.hook())
    psum.torch.broadcast_parameters(nets[2].state_dict())
    optimizers = [
        torch.optim.AdamW(models[0].parameters(), lr=0.01, amsgrad=True),
        torch.optim.SGD(models[1].parameters(), lr=0.1, momentum=0.9),
        psum.torch.DistributedOptimizer(
            torch.optim.Adam(nets[2].parameters(), lr=0.01),
            nets[2].named_parameters(),
            backward_passes_per_step=passes,
        ),
    ]
    schedule = torch.optim.lr_scheduler.StepLR(optimizers[0], 3, 0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
    state = psum.torch.ElasticState(
        [*models, nets[2]],
        optimizers,
        schedule=schedule,
        scaler=scaler,
        rng=torch.default_generator,
        average=torch.zeros(3, dtype=torch.float64),
        batch=0,
        more=4,
    )
    hashes = {}
    while True:
        # A lost rank may be among the members for two more steps.
        if state.batch > kill_at + 2 and len(state.members) == dist.get_world_size():
            if not state.more:
                break
            state.more -= 1
        if dist.get_rank() == lost and state.batch == kill_at and not state.joined:
            os.kill(os.getpid(), signal.SIGKILL)
        values = torch.randn(6, 17)
        for _ in range(passes):
            for number, model in enumerate([*models, nets[2]]):
                loss = model((values * (dist.get_rank() + 1)).to(nets[number].layers[0].weight.dtype))
                (scaler.scale(loss) if number == 0 else loss).backward()
        scaler.step(optimizers[0])
        scaler.update()
        for optimizer in optimizers[1:]:
            optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()
        schedule.step()
        state.average.mul_(0.5).add_(state.batch)
        state.batch += 1
        state.step()
        parameters = [each for net in nets for each in net.parameters()]
        rates = torch.tensor([group["lr"] for each in optimizers for group in each.param_groups] + [scaler.get_scale()])
        hashes[state.batch] = digest_of([*parameters, rates, state.average, torch.get_rng_state()])
        time.sleep(0.01)
    return state.joined, hashes


@pytest.mark.parametrize(("lost", "kill_at", "passes"), [(1, 0, 1), (0, 3, 2)])
def test_a_replacement_has_the_same_bits(elastic_ranks: Ranks, lost: int, kill_at: int, passes: int) -> None:
    """A process that replaces a killed one gets everything at a boundary, and has the others' bits from then on.

    Rank 0, too, from which DistributedDataParallel broadcasts buffers. Models are averaged by DistributedDataParallel
    with AdamW, by psum's hook, and by DistributedOptimizer in bfloat16.
    """
    results = elastic_ranks.run(3, joining, lost, kill_at, passes, replacing=True)
    joined, hashes = results.pop(lost)
    first, last = results
    assert first == last
    assert not first[0]
    assert joined
    assert len(hashes) >= 4
    assert hashes.items() <= first[1].items()


def without_rank_0() -> list[bytes]:
    rank = dist.get_rank()
    psum.torch.init()
    torch.manual_seed(rank)
    dist.barrier()
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    parameters = {"w": torch.full((100,), float(rank))}
    psum.torch.broadcast_parameters(parameters)
    with pytest.raises(WorkerLostError, match="rank 0 is gone"):
        dist.broadcast(torch.empty(3), 0)
    # Batch normalization has buffers, which are broadcast in each step.
    model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)))
    for _ in range(2):
        model(torch.randn(8, 4)).sum().backward()
    model(torch.randn(8, 4))
    tensors = [parameters["w"], *model.parameters(), *(p.grad for p in model.parameters())]
    return [tensor.detach().numpy().tobytes() for tensor in tensors]


def test_modules_get_the_values_of_another_rank_when_rank_0_is_lost(elastic_ranks: Ranks) -> None:
    """DistributedDataParallel's parameters and buffers, and broadcast_parameters. A tensor of the program may have no
    value, so its broadcast fails, and the others go on."""
    lost, *living = elastic_ranks.run(3, without_rank_0, failing=True)
    assert lost is None
    assert living[0] == living[1]
