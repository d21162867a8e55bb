"""Compares psum with MXNet's own dist_sync KVStore, which is ps-lite, on this machine.

    python tests/bench/against_dist_sync.py [--workload big] [--workers 2] [--servers 1] [--rounds 5]

Both push-pull the same tensors in processes of their own over loopback, in turns, so that a noisy machine is so to
both. Prints each run as a line of JSON, with GB/s counted as `psum bench` counts them, then the medians and their
ratio. Needs psum with its extras `aggregator` and `mxnet` (dist_sync is in the wheel of MXNet 1.9.1). It is no test.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

from psum.cli._workloads import NAMES, sizes

_PATIENCE_SECONDS = 600.0


def main() -> None:
    """Runs both in turns and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=NAMES, default="big")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="how often each of the two runs")
    args = parser.parse_args()
    if "DMLC_ROLE" in os.environ:
        _work_for_dist_sync(args)
        return
    runs: dict[str, list[dict[str, Any]]] = {"psum": [], "dist_sync": []}
    for _ in range(args.rounds):
        for system, run in (("psum", _run_psum), ("dist_sync", _run_dist_sync)):
            report = run(args)
            runs[system].append(report)
            print(json.dumps(report), flush=True)
    for figure in ("gb_per_s_per_worker", "ms_per_step", "worker_cpu_s_per_gb"):
        ours, theirs = (statistics.median(report[figure] for report in runs[system]) for system in runs)
        print(f"median {figure}: psum {ours:.3f}, dist_sync {theirs:.3f}, ratio {ours / theirs:.2f}")


def _run_psum(args: argparse.Namespace) -> dict[str, Any]:
    options = {
        "--workload": args.workload,
        "--workers": args.workers,
        "--aggregators": args.servers,
        "--steps": args.steps,
    }
    command = [sys.executable, "-m", "psum.cli", "bench", "--json"]
    command += [str(word) for option in options.items() for word in option]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=_PATIENCE_SECONDS)
    return _parsed(done.stdout)


def _run_dist_sync(args: argparse.Namespace) -> dict[str, Any]:
    with socket.socket() as probe:
        # Free now, and not given to others soon.
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {
        **os.environ,
        "DMLC_NUM_WORKER": str(args.workers),
        "DMLC_NUM_SERVER": str(args.servers),
        "DMLC_PS_ROOT_URI": "127.0.0.1",
        "DMLC_PS_ROOT_PORT": str(port),
    }

    def start(role: str, **options: Any) -> "subprocess.Popen[str]":
        command = [sys.executable, *sys.argv]
        return subprocess.Popen(command, env={**environ, "DMLC_ROLE": role}, text=True, **options)

    helpers = [start("scheduler"), *(start("server") for _ in range(args.servers))]
    workers = [start("worker", stdout=subprocess.PIPE) for _ in range(args.workers)]
    try:
        outputs = [worker.communicate(timeout=_PATIENCE_SECONDS)[0] for worker in workers]
        for worker, output in zip(workers, outputs, strict=True):
            if worker.returncode != 0:
                raise subprocess.CalledProcessError(worker.returncode, worker.args, output)
        return _parsed("".join(outputs))
    finally:
        for process in (*workers, *helpers):
            process.kill()
            process.wait()


def _parsed(text: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(text)
    return report


def _work_for_dist_sync(args: argparse.Namespace) -> None:
    """What each process of dist_sync does. Schedulers and servers do not come back from importing MXNet."""
    import numpy as np

    if "bool" not in vars(np):
        # MXNet names numpy.bool, which NumPy 1.24 took away.
        vars(np)["bool"] = bool
    import mxnet as mx

    store = mx.kv.create("dist_sync")
    values = [mx.nd.ones((size,)) for size in sizes(args.workload)]
    sums = [mx.nd.zeros_like(value) for value in values]
    for number, value in enumerate(values):
        store.init(str(number), value)
    mx.nd.waitall()

    def step() -> None:
        for number, (value, out) in enumerate(zip(values, sums, strict=True)):
            store.pushpull(str(number), value, out=out, priority=-number)
        mx.nd.waitall()

    for _ in range(2):
        step()
    store._barrier()
    cpu_before, before = time.process_time(), time.perf_counter()
    for _ in range(args.steps):
        step()
    seconds, cpu_seconds = time.perf_counter() - before, time.process_time() - cpu_before
    gigabytes = args.steps * sum(value.size * 4 for value in values) / 1e9
    if store.rank == 0:
        report = {
            "system": "dist_sync",
            "workload": args.workload,
            "workers": args.workers,
            "servers": args.servers,
            "gb_per_s_per_worker": round(gigabytes / seconds, 4),
            "ms_per_step": round(seconds / args.steps * 1e3, 2),
            "worker_cpu_s_per_gb": round(cpu_seconds / gigabytes, 3),
        }
        print(json.dumps(report), flush=True)
    store._barrier()


if __name__ == "__main__":
    main()
