"""Shows how much of DistributedDataParallel's communication lies under the backward pass.

    torchrun --nproc-per-node 2 -m tests.bench.torch_overlap      # rank 0 prints a table; with --json, it prints JSON

The ways alternate in one process: psum's backend, Gloo, and psum's hook beside Gloo. Times are medians, and last until
the slowest rank has ended. For each way:

- `compute_ms`: a step of the same model with a hook that divides the buckets, as DistributedDataParallel itself does
  otherwise, and sends nothing.
- `communication_ms`: the same buckets without a step.
- `step_ms`: both.
- `exposed_ms`: what communication adds to a step: step less compute.
- `least_exposed_ms`: what it must add. A bucket cannot go before its gradients are there, and the last one is there
  when the backward pass ends.
- `hidden`: the part of the communication that lies under the backward pass.
- `of_possible`: the same, divided by the part that could lie there, in view of when the buckets are ready. 1 is the
  best, and 0.9 is the target for psum.

By default, a layer's backward pass sleeps, as if a GPU computed it: processors are then free for the communication.
With `--compute linear`, it computes on the processors, which it shares with the communication.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

#: The ways, in the order in which they take turns.
WAYS: Final = ("psum", "gloo", "hook")

#: The target for psum's `of_possible`.
TARGET: Final = 0.9

#: The columns of the table: figure, title, decimals.
_COLUMNS: Final = (
    ("compute_ms", "step without communication, ms", 1),
    ("communication_ms", "communication alone, ms", 1),
    ("step_ms", "step, ms", 1),
    ("exposed_ms", "added by communication, ms", 1),
    ("least_exposed_ms", "least possible, ms", 1),
    ("hidden", "hidden", 2),
    ("of_possible", "of what is possible", 2),
)


def least_exposed(ready: Sequence[float], durations: Sequence[float], end: float) -> float:
    """The shortest time from the end of the backward pass to the end of the last bucket, if buckets go one by one.

    Args:
        ready: When each bucket is ready, in order.
        durations: How long each takes.
        end: When the backward pass ends.
    """
    finish = 0.0
    for begin, duration in zip(ready, durations, strict=True):
        finish = max(finish, begin) + duration
    return max(0.0, finish - end)


def report(
    compute: Sequence[float],
    communication: Sequence[float],
    step: Sequence[float],
    buckets: Sequence[tuple[float, int]],
    end: float,
) -> dict[str, float]:
    """What was measured of one way, in milliseconds and parts of one.

    Args:
        compute: Seconds of steps without communication.
        communication: Seconds of the communication without steps.
        step: Seconds of steps.
        buckets: When each bucket was ready, in seconds from the beginning of a step, and its size.
        end: When the backward pass ended.
    """
    alone, total = statistics.median(communication), sum(size for _, size in buckets)
    exposed = max(0.0, statistics.median(step) - statistics.median(compute))
    least = least_exposed([ready for ready, _ in buckets], [alone * size / total for _, size in buckets], end)
    return {
        "compute_ms": round(1000 * statistics.median(compute), 2),
        "communication_ms": round(1000 * alone, 2),
        "step_ms": round(1000 * statistics.median(step), 2),
        "exposed_ms": round(1000 * exposed, 2),
        "least_exposed_ms": round(1000 * least, 2),
        "hidden": round(1 - exposed / alone, 3),
        "of_possible": round((alone - exposed) / max(1e-9, alone - least), 3),
    }


def table(ways: Mapping[str, Mapping[str, float]]) -> str:
    """Returns a Markdown table of reports by way, and a sentence for each way that says what they mean."""
    lines = [f"| way | {' | '.join(title for _, title, _ in _COLUMNS)} |", "|---|" + "---|" * len(_COLUMNS)]
    for way, its in ways.items():
        lines.append(f"| {way} | {' | '.join(f'{its[name]:.{decimals}f}' for name, _, decimals in _COLUMNS)} |")
    lines.append("")
    for way, its in ways.items():
        part = its["of_possible"]
        verdict = f"; target ≥ {TARGET:.0%}: {'reached' if part >= TARGET else 'missed'}" if way != "gloo" else ""
        lines.append(
            f"{way}: {part:.0%} of the communication that DistributedDataParallel's timeline lets overlap with the"
            f" backward pass does so{verdict}"
        )
    return "\n".join(lines)


class _Bucket:
    """Stands in for a bucket of DistributedDataParallel."""

    def __init__(self, index: int, tensor: Any) -> None:
        self.index = lambda: index
        self.buffer = lambda: tensor


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure on this rank, and return the results by way."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    import psum.torch

    torch.set_num_threads(arguments.threads)
    dist.init_process_group("gloo")
    groups = {"psum": dist.new_group(backend="psum"), "gloo": dist.group.WORLD, "hook": dist.group.WORLD}
    hook = psum.torch.hook()
    inputs = torch.randn(32, arguments.width)

    def network() -> Any:
        torch.manual_seed(0)
        kind = _sleeping_layer(torch, arguments) if arguments.compute == "sleep" else _linear_layer(torch, arguments)
        return torch.nn.Sequential(*[kind() for _ in range(arguments.layers)])

    def step(model: Any) -> float:
        model.zero_grad(set_to_none=False)
        dist.barrier()
        begin = time.perf_counter()
        model(inputs).sum().backward()
        return time.perf_counter() - begin

    def parallel(way: str, its_hook: Any = None) -> Any:
        model = DistributedDataParallel(
            network(), process_group=groups[way], bucket_cap_mb=arguments.bucket_mb, gradient_as_bucket_view=True
        )
        if its_hook is not None:
            model.register_comm_hook(None, its_hook)
        return model

    # The timeline of a step: when buckets are ready, and when the backward pass ends.
    buckets: list[tuple[float, int]] = []

    def note(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        buckets.append((time.perf_counter(), bucket.buffer().numel()))
        future: Any = torch.futures.Future()
        future.set_result(bucket.buffer().div_(dist.get_world_size()))
        return future

    noted = parallel("gloo", note)
    timelines: list[list[float]] = []
    ends: list[float] = []
    for number in range(arguments.warmup + arguments.rounds):
        buckets.clear()
        end = step(noted)
        begin = time.perf_counter() - end
        # DistributedDataParallel cuts its buckets anew after the first step.
        if number >= arguments.warmup:
            timelines.append([ready - begin for ready, _ in buckets])
            ends.append(end)
    moments = [statistics.median(each) for each in zip(*timelines, strict=True)]
    timeline = [(ready, size) for ready, (_, size) in zip(moments, buckets, strict=True)]

    def communicate(way: str) -> float:
        dist.barrier()
        begin = time.perf_counter()
        if way == "hook":
            pending = [hook(None, _Bucket(index, tensor)) for index, tensor in enumerate(tensors)]
        else:
            pending = [dist.all_reduce(tensor, group=groups[way], async_op=True) for tensor in tensors]
        for each in pending:
            each.wait()
        return time.perf_counter() - begin

    tensors = [torch.zeros(size) for _, size in timeline]
    models = {way: parallel(way, hook if way == "hook" else None) for way in arguments.ways}
    times: dict[str, dict[str, list[float]]] = {
        way: {"compute": [], "communication": [], "step": []} for way in arguments.ways
    }
    for round_number in range(arguments.warmup + arguments.rounds):
        for way, model in models.items():
            taken = {"compute": step(noted), "communication": communicate(way), "step": step(model)}
            for name, seconds in taken.items():
                if round_number >= arguments.warmup:
                    times[way][name].append(seconds)

    def slowest(of_steps: Sequence[float]) -> list[float]:
        """For each step, the time of the slowest rank."""
        tensor = torch.tensor(of_steps, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return list(tensor.tolist())

    results = {
        way: report(
            slowest(its["compute"]),
            slowest(its["communication"]),
            slowest(its["step"]),
            timeline,
            statistics.median(ends),
        )
        for way, its in times.items()
    }
    del models, noted
    psum.torch.shutdown()
    rank = dist.get_rank()
    dist.destroy_process_group()
    return {"rank": rank, "buckets": len(timeline), "megabytes": sum(4 * n for _, n in timeline) / 1e6, "ways": results}


def _sleeping_layer(torch: Any, arguments: argparse.Namespace) -> Callable[[], Any]:
    """A layer with many parameters, whose backward pass leaves the processors alone."""

    class Sleep(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, inputs: Any, weight: Any) -> Any:
            context.shape = weight.shape
            return inputs.clone()

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            time.sleep(arguments.layer_ms / 1000)
            return gradient, torch.ones(context.shape)

    class Layer(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(arguments.width * arguments.width))

        def forward(self, inputs: Any) -> Any:
            return Sleep.apply(inputs, self.weight)

    return Layer


def _linear_layer(torch: Any, arguments: argparse.Namespace) -> Callable[[], Any]:
    return lambda: torch.nn.Linear(arguments.width, arguments.width)


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS), help=f"of {', '.join(WAYS)}")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=1024, help="a layer has width × width parameters")
    parser.add_argument("--layer-ms", type=float, default=10.0, help="how long a layer's backward pass sleeps")
    parser.add_argument("--bucket-mb", type=float, default=8.0)
    parser.add_argument("--compute", choices=("sleep", "linear"), default="sleep")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=3, help="steps before the timed ones, at least 1")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    arguments = parser.parse_args()
    result = work(arguments)
    if result["rank"] == 0:
        print(json.dumps(result) if arguments.json else table(result["ways"]), flush=True)


if __name__ == "__main__":
    main()
