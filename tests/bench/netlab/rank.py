"""One rank in the lab: `python -I rank.py MEASURE PLAN STEPS`.

It runs the loop of `psum bench` and records when each step begins and ends. MEASURE is the path of
psum/cli/bench/measure.py, PLAN is a plan for it as JSON, and STEPS is the file for the recorded times. A rival's
interpreter may lack psum. This file and MEASURE then need only the standard library and the rival. For psum through
torch.distributed, the interpreter needs PyTorch and psum.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any


class Recorded:
    """Wraps a system and records its steps. All other attributes are the system's own.

    Attributes:
        steps: The monotonic times at which each step began and ended, in seconds.
    """

    def __init__(self, system: Any) -> None:
        self._system = system
        self._begun: float | None = None
        self.steps: list[tuple[float, float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)

    def push_pull(self, number: int) -> None:
        """Begins to sum a tensor. The first tensor begins a step."""
        if self._begun is None:
            self._begun = time.monotonic()
        self._system.push_pull(number)

    def wait_for_all(self) -> None:
        """Ends a step."""
        self._system.wait_for_all()
        if self._begun is not None:
            self.steps.append((self._begun, time.monotonic()))
            self._begun = None


def main(path: str, argument: str, file: str) -> int:
    """Runs the process that the environment and the plan describe; returns its exit status."""
    measure = _load(path)
    plan = measure.Plan.load(argument)
    if os.environ.get("DMLC_ROLE") in ("scheduler", "server"):
        measure.import_mxnet()
        return 0
    if plan.system in measure.RIVALS:
        _run(measure, measure.RIVALS[plan.system](plan), plan, file)
        return 0
    from psum.client import PsumError, connect

    try:
        if plan.system == "torch":
            _run_through_torch(measure, plan, file)
            return 0
        from psum.cli.bench import worker

        with connect() as client:
            _run(measure, worker.NumPy(client, plan), plan, file)
    except PsumError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run(measure: ModuleType, system: Any, plan: Any, file: str) -> None:
    recorded = Recorded(system)
    measurement = measure.measure(recorded, plan)
    pathlib.Path(file).write_text(json.dumps(recorded.steps))
    if recorded.rank == 0:
        pathlib.Path(plan.measurement).write_text(measurement.dump())
    system.end()


def _run_through_torch(measure: ModuleType, plan: Any, file: str) -> None:
    """Runs psum's backend of torch.distributed, with the aggregators that it starts by itself."""
    import torch.distributed as dist

    import psum.torch  # noqa: F401
    from psum.client import fetch_status

    torch_distributed: Any = measure.TorchDistributed

    class Psum(torch_distributed):  # type: ignore[misc]
        backend = "psum"

        def __init__(self, plan: Any) -> None:
            super().__init__(plan)
            self._client: Any = dist.group.WORLD.client
            pids = [0] * dist.get_world_size()
            dist.all_gather_object(pids, os.getpid())
            self.servers = list(_started_by(pids)) if self.rank == 0 else []

        @property
        def plane(self) -> str:
            return "+".join(sorted(set(self._client.planes)))

        def server_cpu_seconds(self) -> float:
            settings = self._client.settings
            return float(sum(fetch_status(each, settings=settings).cpu_seconds for each in settings.aggregators))

    _run(measure, Psum(plan), plan, file)


def _started_by(pids: list[int]) -> Iterator[int]:
    """Yields the process ids of the aggregators that the given processes have started. They end with those."""
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, ValueError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"aggregator" in words and int(words[words.index(b"--end-with") + 1]) in pids:
                    yield int(entry.name)


def _load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up their module in sys.modules.
    sys.modules["measure"] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
