"""One rank of tests.bench.torch_ddp: `python -m tests.bench.torch_ddp_rank PLAN`, with PLAN as JSON.

The default group is psum's, and Gloo has a group beside it. So both measure in the same processes, in turn.
"""

import dataclasses
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import psum.torch  # noqa: F401
from psum.cli.bench.workloads import sizes
from tests.bench.marked_processes import aggregators
from tests.process_stat import processor_seconds

#: The variable by which rank 0 finds the job's aggregators.
MARK: Final = "TORCH_DDP_RUN"

#: The ways, in the order in which they take turns.
WAYS: Final = ("psum", "gloo")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every rank does.

    Attributes:
        workload: The name of the workload: its tensors are the parameters.
        warmup: Steps of each way before the timed ones. DistributedDataParallel cuts its buckets anew after the first.
        steps: Steps of one kind in a turn.
        rounds: The number of turns of each way.
        file: Where rank 0 writes the results.
        bucket_views: Whether gradients are views of the buckets (gradient_as_bucket_view), which is not
            DistributedDataParallel's default.
    """

    workload: str
    warmup: int
    steps: int
    rounds: int
    file: str
    bucket_views: bool


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one turn of one way measured. A step ends when the slowest rank has ended it; times are medians.

    Attributes:
        plain_ms: A step without communication: a hook divides the buckets by the number of ranks, and sends nothing.
        step_ms: The same step with communication.
        buckets_ms: An all-reduce of DistributedDataParallel's buckets alone, without a step.
        plain_cpu_ms: Processor time of a step without communication, of all ranks and aggregators together.
        step_cpu_ms: The same with communication.
        buckets_cpu_ms: The same of the buckets alone.
    """

    plain_ms: float
    step_ms: float
    buckets_ms: float
    plain_cpu_ms: float
    step_cpu_ms: float
    buckets_cpu_ms: float


class _Gradient(torch.autograd.Function):  # type: ignore[misc]
    """Gives a parameter a gradient that costs nothing to compute."""

    @staticmethod
    def forward(context: Any, inputs: Any, weight: Any, gradient: Any) -> Any:
        context.size, context.gradient = weight.numel(), gradient
        return inputs.clone()

    @staticmethod
    def backward(context: Any, inputs: Any) -> Any:
        return inputs, context.gradient.expand(context.size), None


class _Net(torch.nn.Module):  # type: ignore[misc]
    """A network with given parameters, whose passes cost next to nothing: a step is then its communication.

    Args:
        weights: The parameters. Networks may share them.
        gradient: What each element of each parameter gets as its gradient.
    """

    def __init__(self, weights: Sequence[Any], gradient: Any) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList([torch.nn.Parameter(weight.detach()) for weight in weights])
        self._gradient = gradient

    def forward(self, inputs: Any) -> Any:
        for weight in self.weights:
            inputs = _Gradient.apply(inputs, weight, self._gradient)
        return inputs


def _divide(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """A hook that does what DistributedDataParallel does itself to a bucket, and sends nothing."""
    future: Any = torch.futures.Future()
    future.set_result(bucket.buffer().div_(dist.get_world_size()))
    return future


class _Measuring:
    """Takes the time of this rank's steps, and on rank 0 the processor time of the job.

    Args:
        control: The group in which ranks wait for each other.
    """

    def __init__(self, control: Any) -> None:
        self._control = control
        pids = [0] * dist.get_world_size()
        dist.all_gather_object(pids, os.getpid(), group=control)
        self._pids = [*pids, *aggregators(MARK, os.environ[MARK])]

    def steps(self, number: int, prepare: Callable[[], None], step: Callable[[], None]) -> tuple[float, float]:
        """Returns the median time of a step until the slowest rank has ended it, and its processor time, in ms.

        Args:
            number: The number of steps.
            prepare: What comes before each step. Its time does not count, but its processor time does.
            step: The step.
        """
        taken = torch.zeros(number, dtype=torch.float64)
        before = self._processor_seconds()
        for index in range(number):
            prepare()
            dist.barrier(group=self._control)
            begin = time.perf_counter()
            step()
            taken[index] = time.perf_counter() - begin
        used = self._processor_seconds() - before
        dist.all_reduce(taken, dist.ReduceOp.MAX, group=self._control)
        return 1000 * statistics.median(taken.tolist()), 1000 * used / number

    def _processor_seconds(self) -> float:
        dist.barrier(group=self._control)
        used = sum(map(processor_seconds, self._pids)) if dist.get_rank() == 0 else 0.0
        dist.barrier(group=self._control)
        return used


class _Bench:
    """Both ways, on the same parameters."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.groups = {"psum": dist.group.WORLD, "gloo": dist.new_group(backend="gloo")}
        self._measuring = _Measuring(self.groups["gloo"])
        self._inputs = torch.zeros(1, requires_grad=True)
        gradient = torch.tensor([dist.get_rank() + 1.0])
        weights = [torch.zeros(size) for size in sizes(plan.workload)]

        def model(group: Any) -> Any:
            return DistributedDataParallel(
                _Net(weights, gradient), process_group=group, gradient_as_bucket_view=plan.bucket_views
            )

        self.models = {way: model(group) for way, group in self.groups.items()}
        self._plain = model(self.groups["gloo"])
        self._plain.register_comm_hook(None, _divide)
        self.buckets = [torch.zeros(size) for size in sizes(f"{plan.workload}-ddp")]

    def turn(self, way: str, steps: int) -> Turn:
        """Measures one way."""
        model, group = self.models[way], self.groups[way]

        def steps_of(model: Any) -> tuple[float, float]:
            return self._measuring.steps(
                steps, lambda: model.zero_grad(set_to_none=False), lambda: model(self._inputs).backward()
            )

        def reduce_buckets() -> None:
            works = [dist.all_reduce(bucket, group=group, async_op=True) for bucket in self.buckets]
            for work in works:
                work.wait()

        plain, whole = steps_of(self._plain), steps_of(model)
        self._check(way)
        alone = self._measuring.steps(steps, lambda: None, reduce_buckets)
        return Turn(plain[0], whole[0], alone[0], plain[1], whole[1], alone[1])

    def _check(self, way: str) -> None:
        """Checks that every gradient is the average over all ranks."""
        expected = (dist.get_world_size() + 1) / 2
        for number, weight in enumerate(self.models[way].parameters()):
            if [each.item() for each in weight.grad.aminmax()] != [expected, expected]:
                raise RuntimeError(f"{way} gave rank {dist.get_rank()} a wrong average for parameter {number}")

    def turns(self) -> Iterator[dict[str, Turn]]:
        """Yields what each round measured, by way. Each round begins with the other way than the one before."""
        for way in WAYS:
            self.turn(way, self._plan.warmup)
        for number in range(self._plan.rounds):
            order = WAYS if number % 2 == 0 else WAYS[::-1]
            yield {way: self.turn(way, self._plan.steps) for way in order}


def main(argument: str) -> None:
    """Measures as the plan says. Rank 0 writes the results."""
    plan = Plan(**json.loads(argument))
    torch.set_num_threads(1)
    dist.init_process_group("psum")
    bench = _Bench(plan)
    rounds = [{way: dataclasses.asdict(turn) for way, turn in each.items()} for each in bench.turns()]
    if dist.get_rank() == 0:
        client: Any = dist.group.WORLD.client
        result = {
            "rounds": rounds,
            "plane": "+".join(sorted(set(client.planes))),
            "buckets": len(bench.buckets),
            "megabytes": sum(bucket.nbytes for bucket in bench.buckets) / 1e6,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS", ""),
        }
        pathlib.Path(plan.file).write_text(json.dumps(result))
    bench.models.clear()
    del bench
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
