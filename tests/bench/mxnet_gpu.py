"""Shows what the sums of a GPU's arrays cost the thread that trains with MXNet, and how long a step takes.

    python -m tests.bench.mxnet_gpu                     # psum on shm and direct, and dist_device_sync, with 2 workers

All workers share the first GPU. They sum a workload's arrays in place, as gluon.Trainer does, and wait for all sums.
The systems take turns. The table has medians over the rounds, of rank 0:

- `call, µs`: the time that the calling thread spends in one pushpull, and of it the processor time of this thread. The
  rest is waiting, mostly for the interpreter's lock.
- `issue, ms`: the time from the first call of a step until the last one returns.
- `step, ms`: the time until all sums are there.

`--device cpu` sums arrays in host memory. With the stand-in for CUDA that scripts/gpu-checks builds, it also runs
without a GPU; then copies "to the device" are copies in host memory, made by processors.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Final

#: psum's planes, and MXNet's own stores.
SYSTEMS: Final = ("shm", "direct", "inline", "dist_sync", "dist_device_sync")

#: What a line with a result begins with.
_MARK: Final = "RESULT "

_JOB_SECONDS: Final = 300.0

#: The columns of the table: figure, title, decimals.
_COLUMNS: Final = (
    ("call_us", "call, µs", 0),
    ("call_cpu_us", "of it processor, µs", 0),
    ("issue_ms", "issue, ms", 1),
    ("step_ms", "step, ms", 1),
    ("gb_per_s", "GB/s", 2),
    ("cpu_s_per_gb", "worker, CPU s/GB", 2),
)


def work(arguments: argparse.Namespace) -> None:
    """Measure on this rank, as part of a job, and print the results."""
    if arguments.system in ("dist_sync", "dist_device_sync"):
        import numpy

        vars(numpy).setdefault("bool", bool)
        import mxnet as mx

        store = mx.kv.create(arguments.system)
    else:
        import psum.mxnet
        from psum.mxnet.compat import mx

        store = psum.mxnet.BytePS()
    from psum.cli.bench.workloads import sizes as sizes_of

    device = mx.gpu(0) if arguments.device == "gpu" else mx.cpu(0)
    sizes = sizes_of(arguments.workload)
    arrays = [mx.nd.ones((size,), ctx=mx.cpu(0)).copyto(device) for size in sizes]
    keys = [str(number) for number in range(len(sizes))]
    if not arguments.is_psum:
        for key, array in zip(keys, arrays, strict=True):
            store.init(key, array)
    mx.nd.waitall()
    issues: list[tuple[float, float, float]] = []
    steps: list[float] = []
    cpu = 0.0
    for number in range(arguments.warmup + arguments.steps):
        if number == arguments.warmup:
            cpu = time.process_time()
        begin, thread, longest = time.perf_counter(), time.thread_time(), 0.0
        last = begin
        for index, (key, array) in enumerate(zip(keys, arrays, strict=True)):
            store.pushpull(key, array, out=array, priority=-index)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        issue = last - begin, time.thread_time() - thread, longest
        mx.nd.waitall()
        if number >= arguments.warmup:
            issues.append(issue)
            steps.append(time.perf_counter() - begin)
    cpu = time.process_time() - cpu
    store._barrier()
    if store.rank == 0:
        step, calls, nbytes = statistics.median(steps), len(sizes), 4 * sum(sizes)
        wall, thread_time, longest = (statistics.median(column) for column in zip(*issues, strict=True))
        result = {
            "call_us": 1e6 * wall / calls,
            "call_cpu_us": 1e6 * thread_time / calls,
            "longest_call_ms": 1e3 * longest,
            "issue_ms": 1e3 * wall,
            "step_ms": 1e3 * step,
            "gb_per_s": nbytes / step / 1e9,
            "cpu_s_per_gb": cpu / (nbytes * len(steps) / 1e9),
        }
        print(_MARK + json.dumps({name: round(value, 3) for name, value in result.items()}), flush=True)


def run(system: str, workers: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one job, and return what its rank 0 has measured."""
    options = [
        f"--workload={arguments.workload}",
        f"--device={arguments.device}",
        f"--steps={arguments.steps}",
        f"--warmup={arguments.warmup}",
    ]
    command = [sys.executable, "-m", "tests.bench.mxnet_gpu", f"--work={system}", *options]
    if system in ("dist_sync", "dist_device_sync"):
        text = _run_rival(command, workers)
    else:
        launch = [sys.executable, "-m", "psum.cli", "launch", f"--workers={workers}", f"--plane={system}"]
        launch += [f"--aggregators={arguments.aggregators}", f"--processes={arguments.processes}"]
        done = subprocess.run([*launch, "--", *command], capture_output=True, text=True, timeout=_JOB_SECONDS)
        text = done.stdout + done.stderr
    found = [line.partition(_MARK)[2] for line in text.splitlines() if _MARK in line]
    if not found:
        sys.exit(f"{system} with {workers} workers measured nothing:\n{text}")
    result: dict[str, float] = json.loads(found[0])
    return result


def _run_rival(command: Sequence[str], workers: int) -> str:
    """Run a job of one of MXNet's own stores, with one server, and return what its workers print."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {
        **os.environ,
        "DMLC_NUM_WORKER": str(workers),
        "DMLC_NUM_SERVER": "1",
        "DMLC_PS_ROOT_URI": "127.0.0.1",
        "DMLC_PS_ROOT_PORT": str(port),
        "DMLC_NODE_HOST": "127.0.0.1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    # An import of MXNet does all of a server's work.
    server = [sys.executable, "-c", "import numpy; vars(numpy).setdefault('bool', bool); import mxnet"]
    with contextlib.ExitStack() as stack:
        for role in ("scheduler", "server"):
            stack.enter_context(_started(server, {**environ, "DMLC_ROLE": role}))
        started = [stack.enter_context(_started(command, {**environ, "DMLC_ROLE": "worker"})) for _ in range(workers)]
        return "".join(worker.communicate(timeout=_JOB_SECONDS)[0] for worker in started)


@contextlib.contextmanager
def _started(command: Sequence[str], environ: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def table(results: dict[tuple[int, str], list[dict[str, float]]]) -> str:
    """Returns a Markdown table of the medians, by number of workers and system."""
    lines = [
        f"| workers | system | {' | '.join(title for _, title, _ in _COLUMNS)} |",
        "|---|---|" + "---|" * len(_COLUMNS),
    ]
    for (workers, system), its in results.items():
        medians = [f"{statistics.median(each[name] for each in its):.{decimals}f}" for name, _, decimals in _COLUMNS]
        lines.append(f"| {workers} | {system} | {' | '.join(medians)} |")
    return "\n".join(lines)


def _listed(text: str) -> list[str]:
    systems = text.split(",")
    if unknown := set(systems) - set(SYSTEMS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: expected some of {', '.join(SYSTEMS)}")
    return systems


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", type=_listed, default=["shm", "direct", "dist_device_sync"], metavar="NAME,…")
    parser.add_argument("--workers", type=lambda text: [int(part) for part in text.split(",")], default=[2])
    parser.add_argument("--workload", default="resnet50", help="a name that `psum bench --workload` takes")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="where the arrays are")
    parser.add_argument("--aggregators", type=int, default=1)
    parser.add_argument("--processes", default="1", help="of an aggregator, see `psum launch`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print each run as a line of JSON too")
    parser.add_argument("--work", dest="system", choices=SYSTEMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.system is not None:
        arguments.is_psum = arguments.system in ("shm", "direct", "inline")
        work(arguments)
        return
    results: dict[tuple[int, str], list[dict[str, float]]] = {}
    for _ in range(arguments.rounds):
        for workers in arguments.workers:
            for system in arguments.systems:
                result = run(system, workers, arguments)
                results.setdefault((workers, system), []).append(result)
                if arguments.json:
                    print(json.dumps({"workers": workers, "system": system, **result}), flush=True)
    print(table(results), flush=True)


if __name__ == "__main__":
    main()
