"""The one loop that times every system, and the rivals that it times: MXNet's dist_sync and Gloo.

`python measure.py PLAN` is a worker of a rival, with PLAN as JSON. It needs only the standard library and the rival,
because PyTorch may be in an interpreter that has no psum. So this is one file, and it imports nothing of psum.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Any

_MIB = 1 << 20

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every rank does.

    Attributes:
        system: The system: 'numpy', 'shared' or 'mxnet' for psum, or a rival's name.
        sizes: Element counts of the tensors.
        element_type: The label of the element type.
        item_bytes: Bytes per element.
        warmup: Steps before the timed ones.
        steps: Timed steps.
        latency_steps: Steps after those that measure the time of each tensor.
        idle_seconds: How long all ranks idle at the end, to measure the servers' processor time.
        measurement: The file for rank 0's measurement.
        progress: Whether rank 0 shows its progress on standard error.
        servers: The process ids of a rival's servers.
    """

    system: str
    sizes: list[int]
    element_type: str
    item_bytes: int
    warmup: int
    steps: int
    latency_steps: int
    idle_seconds: float
    measurement: str
    progress: bool
    servers: list[int] = dataclasses.field(default_factory=list)

    def dump(self) -> str:
        """Return the plan as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def load(cls, text: str) -> Plan:
        """Return the plan from JSON."""
        return cls(**json.loads(text))


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What rank 0 measured.

    Attributes:
        seconds: From the first push-pull of the timed steps until the last sum.
        cpu_seconds: Processor time of rank 0's process in that time.
        server_cpu_seconds: Processor time of all servers together in that time. None without servers.
        payload_bytes: Bytes that one worker push-pulled, counted once for both directions.
        plane: The plane of psum's payloads. If aggregators use different planes, all of them. Empty for rivals.
        worker_mib: The peak memory of rank 0's process in the timed steps, in MiB, beyond its memory before the first
            step, which includes the tensors and sums.
        server_mib: The peak memory of all servers together, in MiB, beyond their memory before the first step.
        latency_ms: For each tensor, the median time from its push-pull until it can be read. All tensors are pushed in
            descending order and read in ascending order. Empty if not measured.
        latency_step_ms: The median time of such a step.
        idle_share: Processor seconds of all servers together per second of idling. None if not measured.
    """

    seconds: float
    cpu_seconds: float
    server_cpu_seconds: float | None
    payload_bytes: int
    plane: str
    worker_mib: float
    server_mib: float | None
    latency_ms: list[float]
    latency_step_ms: float
    idle_share: float | None

    def dump(self) -> str:
        """Return the measurement as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def load(cls, text: str) -> Measurement:
        """Return the measurement from JSON."""
        return cls(**json.loads(text))


class System:
    """One rank of a system that sums tensors over all ranks.

    Attributes:
        rank: The number of this rank.
        plane: As in Measurement. Known after the first step.
        servers: The process ids of the system's servers.
    """

    rank = 0
    plane = ""
    servers: list[int] = []  # noqa: RUF012

    def fill(self, turn: int) -> None:
        """Give every tensor new values. By default, tensors keep their values."""

    def push_pull(self, number: int) -> None:
        """Start to sum a tensor over all ranks and return at once. Tensors with smaller numbers are more urgent."""
        raise NotImplementedError

    def wait(self, number: int) -> None:
        """Wait until a tensor's sum can be read."""
        raise NotImplementedError

    def wait_for_all(self) -> None:
        """Wait until every tensor's sum can be read."""
        raise NotImplementedError

    def meet(self) -> None:
        """Wait until all ranks have called this."""
        raise NotImplementedError

    def check(self, turn: int) -> None:
        """Raise if a sum differs from the sum of this turn's values. By default, check nothing."""

    def server_cpu_seconds(self) -> float:
        """Return the processor time of all servers since their start."""
        return sum(map(_cpu_seconds, self.servers))

    def end(self) -> None:
        """Leave the job after the last measurement. By default, the end of the process does that."""


def measure(system: System, plan: Plan) -> Measurement:
    """Run a plan on one rank. The measurement is valid on rank 0 only."""

    def show(text: str) -> None:
        if plan.progress and system.rank == 0:
            print(text, end="\r", file=sys.stderr)

    def servers_used() -> float | None:
        # All ranks wait while rank 0 asks, so that the question takes no time within the timed steps.
        system.meet()
        used = system.server_cpu_seconds() if system.rank == 0 and system.servers else None
        system.meet()
        return used

    numbers = range(len(plan.sizes))
    show("warming up")
    system.fill(0)
    system.meet()
    own_before, servers_before = _memory("VmRSS", [os.getpid()]), _memory("VmRSS", system.servers)
    for _ in range(plan.warmup):
        _step(system, numbers)
    system.fill(1)
    _forget_peak()
    show("measuring")
    used_before = servers_used()
    cpu_before, before = time.process_time(), time.perf_counter()
    for _ in range(plan.steps):
        _step(system, numbers)
    seconds, cpu_seconds = time.perf_counter() - before, time.process_time() - cpu_before
    used_after = servers_used()
    own_after, servers_after = _memory("VmHWM", [os.getpid()]), _memory("VmHWM", system.servers)
    show("checking the sums")
    system.check(1)
    latency_ms, latency_step_ms = _latencies(system, numbers, plan.latency_steps) if plan.latency_steps else ([], 0.0)
    idle_share = None
    if plan.idle_seconds:
        show("idling")
        used = servers_used()
        time.sleep(plan.idle_seconds)
        left = servers_used()
        idle_share = None if used is None or left is None else (left - used) / plan.idle_seconds
    show(" ")
    system.meet()
    return Measurement(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        server_cpu_seconds=None if used_before is None or used_after is None else used_after - used_before,
        payload_bytes=plan.steps * sum(plan.sizes) * plan.item_bytes,
        plane=system.plane,
        worker_mib=max(own_after - own_before, 0.0),
        server_mib=max(servers_after - servers_before, 0.0) if system.servers else None,
        latency_ms=latency_ms,
        latency_step_ms=latency_step_ms,
        idle_share=idle_share,
    )


def _step(system: System, numbers: range) -> None:
    for number in numbers:
        system.push_pull(number)
    system.wait_for_all()


def _latencies(system: System, numbers: range, steps: int) -> tuple[list[float], float]:
    """Push tensors as a backward pass does, the first layer's last, and read them as a forward pass does."""
    each: list[list[float]] = [[] for _ in numbers]
    whole = []
    for _ in range(steps):
        system.meet()
        begun = {}
        start = time.perf_counter()
        for number in reversed(numbers):
            begun[number] = time.perf_counter()
            system.push_pull(number)
        for number in numbers:
            system.wait(number)
            each[number].append(time.perf_counter() - begun[number])
        whole.append(time.perf_counter() - start)
        system.wait_for_all()
    return [statistics.median(times) * 1e3 for times in each], statistics.median(whole) * 1e3


def _cpu_seconds(process: int) -> float:
    with contextlib.suppress(OSError):
        # The command stands in parentheses and may contain any character.
        fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS
    return 0.0


def _memory(figure: str, processes: list[int]) -> float:
    """Return the total memory of processes in MiB: VmRSS for the present value, VmHWM for the peak."""
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):
            for line in pathlib.Path(f"/proc/{process}/status").read_text().splitlines():
                if line.startswith(f"{figure}:"):
                    total += int(line.split()[1]) << 10
    return total / _MIB


def _forget_peak() -> None:
    """Reset this process's peak memory, which includes memory for making the values."""
    # Some kernels do not allow this.
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


class DistSync(System):
    """MXNet's own KVStore dist_sync (ps-lite), from the wheel of MXNet 1.9.1."""

    def __init__(self, plan: Plan) -> None:
        mx = import_mxnet()
        self._wait_for_all = mx.nd.waitall
        self._store = mx.kv.create("dist_sync")
        self.rank, self.servers = self._store.rank, plan.servers
        self._values = [mx.nd.ones((size,)) for size in plan.sizes]
        self._sums = [mx.nd.zeros((size,)) for size in plan.sizes]
        for number, value in enumerate(self._values):
            self._store.init(str(number), value)
        mx.nd.waitall()

    def push_pull(self, number: int) -> None:
        self._store.pushpull(str(number), self._values[number], out=self._sums[number], priority=-number)

    def wait(self, number: int) -> None:
        self._sums[number].wait_to_read()

    def wait_for_all(self) -> None:
        self._wait_for_all()

    def meet(self) -> None:
        self._store._barrier()


class TorchDistributed(System):
    """The all-reduce of a backend of torch.distributed. It sums in place.

    Attributes:
        backend: The backend's name.
    """

    backend = ""

    def __init__(self, plan: Plan) -> None:
        import torch
        import torch.distributed

        # By default one: with all ranks on one machine, more threads per rank only slow each other down.
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
        self._torch = torch
        self._distributed = torch.distributed
        self._distributed.init_process_group(self.backend)
        self.rank = self._distributed.get_rank()
        self._tensors = [torch.ones(size) for size in plan.sizes]
        self._handles: dict[int, Any] = {}
        self._sums = [0 for _ in plan.sizes]

    def fill(self, turn: int) -> None:
        # Each step sums the previous sums, which would be infinite after a hundred steps.
        for number, tensor in enumerate(self._tensors):
            tensor.fill_(1)
            self._sums[number] = 0

    def push_pull(self, number: int) -> None:
        self._handles[number] = self._distributed.all_reduce(self._tensors[number], async_op=True)
        self._sums[number] += 1

    def wait(self, number: int) -> None:
        handle = self._handles.pop(number, None)
        if handle is not None:
            handle.wait()

    def wait_for_all(self) -> None:
        for number in list(self._handles):
            self.wait(number)

    def meet(self) -> None:
        self._distributed.barrier()

    def check(self, turn: int) -> None:
        size = self._torch.tensor(float(self._distributed.get_world_size()))
        for number, tensor in enumerate(self._tensors):
            expected = size ** self._sums[number]
            if not all(self._torch.isclose(found, expected, rtol=1e-4) for found in tensor.aminmax()):
                raise RuntimeError(
                    f"{self.backend} gave rank {self.rank} wrong sums for tensor {number}: {tensor.min():g} to"
                    f" {tensor.max():g}; expected {expected:g}"
                )

    def end(self) -> None:
        # Without it, a process of Gloo may abort at its exit: https://github.com/pytorch/pytorch/issues/190489
        self._distributed.destroy_process_group()


class Gloo(TorchDistributed):
    """Gloo, which has no servers and no priorities."""

    backend = "gloo"


RIVALS = {"dist_sync": DistSync, "gloo": Gloo}


def import_mxnet() -> Any:
    """Import MXNet. For a scheduler or a server of dist_sync, this returns only after the job has ended."""
    import numpy as np

    if "bool" not in vars(np):
        # MXNet uses numpy.bool, which NumPy 1.24 removed.
        vars(np)["bool"] = bool
    import mxnet

    return mxnet


def main(argument: str) -> None:
    """Run one process of a rival. The environment gives its role, the plan its work."""
    plan = Plan.load(argument)
    if os.environ.get("DMLC_ROLE") in ("scheduler", "server"):
        import_mxnet()
        return
    system = RIVALS[plan.system](plan)
    measurement = measure(system, plan)
    if system.rank == 0:
        pathlib.Path(plan.measurement).write_text(measurement.dump())
    system.end()


if __name__ == "__main__":
    main(sys.argv[1])
