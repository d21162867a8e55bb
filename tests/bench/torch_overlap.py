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


class _Rank:
    """What one rank measures. It joins the groups, until `close`.

    Args:
        arguments: Those of the command line.

    Attributes:
        number: The rank.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        import torch
        import torch.distributed as dist

        import psum.torch

        torch.set_num_threads(arguments.threads)
        dist.init_process_group("gloo")
        self.number = dist.get_rank()
        self._arguments = arguments
        self._groups = {"psum": dist.new_group(backend="psum"), "gloo": dist.group.WORLD, "hook": dist.group.WORLD}
        self._hook = psum.torch.hook()
        self._inputs = torch.randn(32, arguments.width)
        self._noted: list[tuple[float, int]] = []
        """When each bucket of the last step without communication was ready, and its size."""
        self._silent = self._model("gloo", self._noting_hook())

    def timeline(self) -> tuple[list[tuple[float, int]], float]:
        """When buckets are ready, in seconds from the beginning of a step, with their sizes; and when a step ends."""
        moments: list[list[float]] = []
        ends: list[float] = []
        for number in range(self._arguments.warmup + self._arguments.rounds):
            end = self.compute()
            begin = time.perf_counter() - end
            # DistributedDataParallel cuts its buckets anew after the first step.
            if number >= self._arguments.warmup:
                moments.append([ready - begin for ready, _ in self._noted])
                ends.append(end)
        usual = [statistics.median(each) for each in zip(*moments, strict=True)]
        return [(ready, size) for ready, (_, size) in zip(usual, self._noted, strict=True)], statistics.median(ends)

    def times(self, sizes: Sequence[int]) -> dict[str, dict[str, list[float]]]:
        """The seconds of steps without communication, of the communication without steps, and of both, by way.

        Args:
            sizes: The elements of each bucket.
        """
        import torch

        tensors = [torch.zeros(size) for size in sizes]
        ways = self._arguments.ways
        models = {way: self._model(way, self._hook if way == "hook" else None) for way in ways}
        times: dict[str, dict[str, list[float]]] = {
            way: {"compute": [], "communication": [], "step": []} for way in ways
        }
        for number in range(self._arguments.warmup + self._arguments.rounds):
            for way, model in models.items():
                taken = {
                    "compute": self.compute(),
                    "communication": self._communicate(way, tensors),
                    "step": self._step(model),
                }
                for name, seconds in taken.items():
                    if number >= self._arguments.warmup:
                        times[way][name].append(seconds)
        return times

    def compute(self) -> float:
        """The seconds of a step that sends nothing."""
        self._noted.clear()
        return self._step(self._silent)

    @staticmethod
    def slowest(seconds: Sequence[float]) -> list[float]:
        """For each of some steps, the seconds of the slowest rank."""
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(seconds, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return list(tensor.tolist())

    def close(self) -> None:
        """Leaves the groups."""
        import torch.distributed as dist

        import psum.torch

        del self._silent
        psum.torch.shutdown()
        dist.destroy_process_group()

    def _model(self, way: str, hook: Any = None) -> Any:
        import torch
        from torch.nn.parallel import DistributedDataParallel

        arguments = self._arguments
        torch.manual_seed(0)
        kind = _sleeping_layer(torch, arguments) if arguments.compute == "sleep" else _linear_layer(torch, arguments)
        network = torch.nn.Sequential(*[kind() for _ in range(arguments.layers)])
        model = DistributedDataParallel(
            network, process_group=self._groups[way], bucket_cap_mb=arguments.bucket_mb, gradient_as_bucket_view=True
        )
        if hook is not None:
            model.register_comm_hook(None, hook)
        return model

    def _noting_hook(self) -> Any:
        """A hook that sends nothing, and notes when each bucket is ready."""
        import torch
        import torch.distributed as dist

        # DistributedDataParallel checks the annotations.
        def note(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            self._noted.append((time.perf_counter(), bucket.buffer().numel()))
            future: Any = torch.futures.Future()
            future.set_result(bucket.buffer().div_(dist.get_world_size()))
            return future

        return note

    def _step(self, model: Any) -> float:
        import torch.distributed as dist

        model.zero_grad(set_to_none=False)
        dist.barrier()
        begin = time.perf_counter()
        model(self._inputs).sum().backward()
        return time.perf_counter() - begin

    def _communicate(self, way: str, tensors: Sequence[Any]) -> float:
        import torch.distributed as dist

        dist.barrier()
        begin = time.perf_counter()
        if way == "hook":
            pending = [self._hook(None, _Bucket(index, tensor)) for index, tensor in enumerate(tensors)]
        else:
            pending = [dist.all_reduce(tensor, group=self._groups[way], async_op=True) for tensor in tensors]
        for each in pending:
            each.wait()
        return time.perf_counter() - begin


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure on this rank, and return the results by way."""
    rank = _Rank(arguments)
    timeline, end = rank.timeline()
    results = {
        way: report(
            rank.slowest(its["compute"]),
            rank.slowest(its["communication"]),
            rank.slowest(its["step"]),
            timeline,
            end,
        )
        for way, its in rank.times([size for _, size in timeline]).items()
    }
    rank.close()
    megabytes = sum(4 * size for _, size in timeline) / 1e6
    return {"rank": rank.number, "buckets": len(timeline), "megabytes": megabytes, "ways": results}


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
