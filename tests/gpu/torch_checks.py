"""Checks psum.torch with tensors on GPUs, and measures it. Prints one JSON object.

The checks of copies run on stand-ins for GPUs too, whose kernels do nothing. Training, priority and speed need a GPU.
Several ranks share a GPU if there are fewer GPUs than ranks.

usage: torch_checks.py [--workers N] [--planes shm,direct,inline] [--quick] [--only check_priority,check_speed]
"""

import argparse
import ctypes
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import psum.client
import psum.torch
from psum.torch import staging

TYPES: Final = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool),
)

_MIB: Final = 1 << 20


class Run:
    """What the checks of one rank share.

    Attributes:
        device: Its GPU.
        is_stand_in: Whether that is a stand-in.
        types: The types whose sums are checked.
    """

    def __init__(self) -> None:
        count = torch.cuda.device_count()
        # The last GPUs: new threads, such as psum's, begin with the first one, and must not use it.
        self.device = torch.device("cuda", count - 1 - int(os.environ["PSUM_RANK"]) % count)
        torch.cuda.set_device(self.device)
        self.is_stand_in = torch.cuda.get_device_name(self.device).startswith("stand-in")
        # The group makes bytes of sums into bools again by a kernel.
        self.types = [dtype for dtype in TYPES if dtype is not torch.bool or not self.is_stand_in]

    def tensor(self, values: torch.Tensor) -> torch.Tensor:
        """Copies values to the GPU, late and without waiting."""
        return torch.empty_like(values, device=self.device).copy_(values.pin_memory(), non_blocking=True)


def pinned(values: torch.Tensor) -> torch.Tensor:
    """Queues a copy of a tensor on the GPU to pinned memory."""
    return torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)


def check_types(run: Run) -> dict[str, Any]:
    """Sums of every type and many sizes are exact, whether streams wait by a future or a Work, in many rounds."""
    rank, size = dist.get_rank(), dist.get_world_size()
    # Two streams that nothing but events puts in order.
    first, side = torch.cuda.Stream(run.device), torch.cuda.Stream(run.device)
    seen = []
    for step in range(3):
        for dtype in run.types:
            for numel in (1, 1000, 300_001):
                plain = (torch.arange(numel) % 3 + rank + step).to(dtype)
                total = sum((torch.arange(numel) % 3 + other + step).to(dtype).to(torch.int64) for other in range(size))
                if dtype is torch.bool:
                    total = torch.as_tensor(total).to(torch.bool)
                with torch.cuda.stream(first):
                    tensor = run.tensor(plain)
                    work = dist.all_reduce(tensor, async_op=True)
                with torch.cuda.stream(side):
                    work.get_future().wait() if numel % 2 else work.wait()
                    seen.append((dtype, numel, step, pinned(tensor), torch.as_tensor(total).to(dtype)))
                    tensor.record_stream(side)
                    # Its memory is used by the next tensor.
                    del tensor, work
    side.synchronize()
    wrong = [f"{dtype} {numel} step {step}" for dtype, numel, step, got, right in seen if not torch.equal(got, right)]
    return {"sums": len(seen), "wrong": wrong}


def check_broadcasts(run: Run) -> dict[str, Any]:
    """All ranks get the bits of any root, NaN and -0.0 too."""
    bits = torch.tensor([0x7FC12345, -0x80000000, 1, -1], dtype=torch.int32)
    wrong = []
    for root in range(dist.get_world_size()):
        mine = bits + 0 if dist.get_rank() == root else torch.full((4,), 77, dtype=torch.int32)
        tensor = run.tensor(mine.view(torch.float32))
        dist.broadcast(tensor, root)
        if tensor.cpu().view(torch.int32).tolist() != bits.tolist():
            wrong.append(root)
    return {"roots": dist.get_world_size(), "wrong": wrong}


def check_training_thread(run: Run) -> dict[str, Any]:
    """Calls return while the GPU is still far from the value: they neither synchronise nor wait for a copy."""
    tensors = [run.tensor(torch.ones(4 * _MIB)) for _ in range(8)]
    for tensor in tensors:
        dist.all_reduce(tensor)
    torch.cuda.synchronize(run.device)
    calls = []
    pending = None
    torch.cuda.set_sync_debug_mode("error")
    try:
        if not run.is_stand_in:
            with torch.cuda.device(run.device):
                # About 0.2 s of nothing on the GPU before the values are there.
                torch.cuda._sleep(300_000_000)
        works = []
        for tensor in tensors:
            begun = time.perf_counter()
            works.append(dist.all_reduce(tensor, async_op=True))
            calls.append(time.perf_counter() - begun)
        pending = sum(not work.is_completed() for work in works)
        for work in works:
            work.wait()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    right = [bool((tensor.cpu() == dist.get_world_size() ** 2).all()) for tensor in tensors]
    return {
        "calls": len(calls),
        "median_us": round(1e6 * statistics.median(calls)),
        "longest_us": round(1e6 * max(calls)),
        "pending_after_calls": pending,
        "wrong": [number for number, is_right in enumerate(right) if not is_right],
    }


def check_contexts(run: Run) -> dict[str, Any]:
    """This process uses only its own GPU: a context on another one would take hundreds of megabytes."""
    driver = ctypes.CDLL("libcuda.so.1")
    found = []
    for number in range(torch.cuda.device_count()):
        device, flags, active = ctypes.c_int(), ctypes.c_uint(), ctypes.c_int()
        driver.cuInit(0)
        assert driver.cuDeviceGet(ctypes.byref(device), ctypes.c_int(number)) == 0
        assert driver.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active)) == 0
        if active.value:
            found.append(number)
    return {"contexts": found, "wrong": [number for number in found if number != run.device.index]}


def network(run: Run) -> torch.nn.Module:
    """A network of 64 MiB, the same on all ranks, whose kernels give the same bits in every run."""
    torch.manual_seed(1)
    layers = [torch.nn.Sequential(torch.nn.Linear(1024, 1024), torch.nn.ReLU()) for _ in range(16)]
    return torch.nn.Sequential(*layers).to(run.device)


def train(run: Run, group: Any, steps: int, seconds: list[float] | None = None) -> list[torch.Tensor]:
    """Trains with DistributedDataParallel over a group, and returns the parameters."""
    model = DistributedDataParallel(network(run), device_ids=[run.device], process_group=group)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(100 + dist.get_rank())
    inputs = torch.randn(64, 1024).to(run.device)
    for _ in range(steps):
        begun = time.perf_counter()
        optimizer.zero_grad()
        model(inputs).pow(2).mean().backward()
        optimizer.step()
        torch.cuda.synchronize(run.device)
        if seconds is not None:
            seconds.append(time.perf_counter() - begun)
    return [parameter.detach().cpu() for parameter in model.parameters()]


def check_ddp_does_not_wait(run: Run) -> dict[str, Any]:
    """DistributedDataParallel and its communication hooks train without synchronising the GPU."""

    def hook(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        summed = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return summed.then(lambda future: future.value()[0])

    steps = 0
    for registered in (None, hook):
        # The ranks cannot compare and distribute parameters with kernels that do nothing.
        ddp = DistributedDataParallel(network(run), device_ids=[run.device], init_sync=not run.is_stand_in)
        if registered is not None:
            ddp.register_comm_hook(None, registered)
        inputs = torch.zeros(4, 1024).to(run.device)
        for step in range(5):
            # DistributedDataParallel itself synchronises in its first steps, when it arranges its buckets.
            torch.cuda.set_sync_debug_mode("error" if step > 2 else "default")
            try:
                ddp(inputs).sum().backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            steps += step > 2
    return {"steps": steps, "wrong": []}


def check_ddp(run: Run) -> dict[str, Any]:
    """DistributedDataParallel on CUDA tensors: all ranks have the same bits, close to Gloo's; steps are timed."""
    gloo = dist.new_group(backend="gloo")
    times: dict[str, list[float]] = {"psum": [], "gloo": []}
    results = {}
    for _ in range(3):
        results["psum"] = train(run, dist.group.WORLD, 10, times["psum"])
        results["gloo"] = train(run, gloo, 10, times["gloo"])
    mine = [parameter.clone() for parameter in results["psum"]]
    for parameter in results["psum"]:
        dist.broadcast(parameter, 0)
    differs = [n for n, (a, b) in enumerate(zip(mine, results["psum"], strict=True)) if not torch.equal(a, b)]
    far = [
        n
        for n, (a, b) in enumerate(zip(results["psum"], results["gloo"], strict=True))
        if not torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    ]
    median = {name: round(1e3 * statistics.median(values[3:]), 2) for name, values in times.items()}
    return {"step_ms": median, "differs_between_ranks": differs, "far_from_gloo": far, "wrong": differs + far}


def check_priority(run: Run) -> dict[str, Any]:
    """A late urgent tensor overtakes those that wait: when it ends, most of the others have not."""
    own_job = dataclasses.replace(psum.client.Settings.from_environment(), job="priority of tensors on GPUs")
    with psum.client.connect(own_job, staging=True) as client:
        store = client.store()
        places, milliseconds = [], []
        for _ in range(5):
            order: list[str] = []
            times: dict[str, float] = {}
            ended = threading.Semaphore(0)

            def end(
                error: Exception | None,
                key: str,
                order: list[str],
                times: dict[str, float],
                ended: threading.Semaphore,
            ) -> None:
                times[key] = time.perf_counter()
                order.append(key if error is None else str(error))
                ended.release()

            names = [f"{number}" for number in range(24)] + ["urgent"]
            # Before the first call: making them takes longer than summing them.
            tensors = [run.tensor(torch.ones(256 * 1024 if key == "urgent" else 2 * _MIB)) for key in names]
            torch.cuda.synchronize(run.device)
            store.barrier()
            begun = time.perf_counter()
            for key, tensor in zip(names, tensors, strict=True):
                done = functools.partial(end, key=key, order=order, times=times, ended=ended)
                staging.push_pull(store, key, tensor, priority=int(key == "urgent"), done=done)
            for _ in names:
                assert ended.acquire(timeout=30), f"only {order} have ended"
            places.append(order.index("urgent"))
            milliseconds.append([round(1e3 * (times[key] - begun), 1) for key in ("urgent", order[-1])])
        store.barrier()
    return {
        "ended_before_the_urgent_one_of_24": places,
        "ms_to_the_urgent_one_and_to_the_last": milliseconds,
        "wrong": [] if statistics.median(places) < 12 else places,
    }


def check_speed(run: Run) -> dict[str, Any]:
    """GB/s of one rank with tensors on the GPU, and on the CPU beside it."""
    result: dict[str, Any] = {}
    for name, numels in (("64MiBx4", [16 * _MIB] * 4), ("4MiBx16", [_MIB] * 16), ("256KiBx64", [65536] * 64)):
        for place in (run.device, torch.device("cpu")):
            tensors = [torch.zeros(numel, device=place) for numel in numels]
            times = []
            for _ in range(12):
                dist.barrier()
                torch.cuda.synchronize(run.device)
                begun = time.perf_counter()
                works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
                for work in works:
                    work.wait()
                torch.cuda.synchronize(run.device)
                times.append(time.perf_counter() - begun)
            gigabytes = 4 * sum(numels) / 1e9
            result[f"{name} {place.type} GB/s"] = round(gigabytes / statistics.median(times[3:]), 3)
    return result | {"wrong": []}


def work(quick: bool, only: list[str]) -> None:
    """Runs the checks on one rank, and prints the results of rank 0 with those of the others."""
    run = Run()
    dist.init_process_group("psum")
    checks: list[Callable[[Run], dict[str, Any]]]
    checks = [check_types, check_broadcasts, check_training_thread, check_ddp_does_not_wait, check_contexts]
    if not run.is_stand_in and not quick:
        checks += [check_ddp, check_priority, check_speed]
    if only:
        checks = [check for name, check in globals().items() if name in only]
    results: dict[str, Any] = {"device": torch.cuda.get_device_name(run.device)}
    for check in checks:
        try:
            results[check.__name__] = check(run)
        except Exception as error:
            results[check.__name__] = {"wrong": [f"{type(error).__name__}: {error}"]}
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, results)
    if dist.get_rank() == 0:
        print("JSON" + json.dumps(gathered), flush=True)
    dist.destroy_process_group()


def drive(workers: int, planes: list[str], options: list[str]) -> int:
    """Runs the checks on each plane, and prints one JSON object. Returns the exit status."""
    report: dict[str, Any] = {"torch": torch.__version__, "workers": workers}
    failed = False
    for plane in planes:
        launch = [sys.executable, "-m", "psum.cli", "launch", "--workers", str(workers), "--plane", plane, "--"]
        program = [sys.executable, __file__, "--work", *options]
        ended = subprocess.run([*launch, *program], text=True, capture_output=True, timeout=280, check=False)
        found = [line for line in ended.stdout.splitlines() if "JSON[" in line]
        if ended.returncode or not found:
            report[plane] = {"status": ended.returncode, "output": (ended.stdout + ended.stderr)[-3000:]}
            failed = True
            continue
        ranks = json.loads(found[0][found[0].index("JSON[") + 4 :])
        failed |= any(check["wrong"] for rank in ranks for check in rank.values() if isinstance(check, dict))
        report[plane] = ranks
    report["right"] = not failed
    print(json.dumps(report, indent=1), flush=True)
    return int(failed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--planes", default="shm,direct,inline")
    parser.add_argument("--quick", action="store_true", help="neither training nor speed")
    parser.add_argument("--only", default="", help="these checks, with commas in between")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.quick, arguments.only.split(",") if arguments.only else [])
    else:
        options = ["--only", arguments.only, *(["--quick"] if arguments.quick else [])]
        sys.exit(drive(arguments.workers, arguments.planes.split(","), options))
