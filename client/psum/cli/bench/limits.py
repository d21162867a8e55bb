"""What this machine allows for the work of a run: the processor time of the same pipeline without psum."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Final

from psum.cli.bench.bare_plan import PLANES, Plan, pieces
from psum.cli.bench.cases import count
from psum.cli.bench.workloads import sizes
from psum.cli.launch.streaming_copies import streaming_environment
from psum.client import Settings
from psum.wire import ElementType

#: Sums of other element types are slow in NumPy, so they would be no limit.
_TYPE: Final = ElementType.FLOAT32

#: Smaller tensors travel together.
_JOINED_BYTES: Final = 256 << 10

#: How many bytes of a worker's payload are measured, and in how many steps. This takes one to three seconds.
_MEASURED_BYTES: Final = 400 << 20
_MOST_STEPS: Final = 200

_TIMEOUT_SECONDS: Final = 90.0

#: Large messages otherwise get new memory each time. psum sets the same by mallopt.
_MALLOC: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(2 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_ARENA_MAX": "1",
}


class NoLimitError(Exception):
    """The limit could not be measured; the text says why."""


def plan(workload: str, workers: int, plane: str) -> Plan:
    """Return the pipeline of a workload: psum's shards, and its credit."""
    settings = Settings()
    tensors = [size * _TYPE.itemsize for size in sizes(workload)]
    cut = list(pieces(tensors, settings.shard_bytes, _JOINED_BYTES))
    return Plan(
        plane=plane,
        workers=workers,
        pieces=cut,
        window=max(2, settings.credit_bytes // max(cut)),
        warmup=2,
        steps=max(3, min(_MOST_STEPS, _MEASURED_BYTES // sum(cut))),
    )


def measure(plan: Plan) -> float:
    """Return the processor seconds of all processes of a pipeline per GB of one worker's payload.

    Raises:
        NoLimitError: It could not be measured.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "psum.cli.bench.bare", plan.dump()],
            env={**os.environ, **_MALLOC, **streaming_environment(plan.plane)},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise NoLimitError(f"it took more than {_TIMEOUT_SECONDS:g} s") from None
    if done.returncode != 0:
        raise NoLimitError(done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}")
    seconds = json.loads(done.stdout)
    return float(seconds["workers"] + seconds["server"]) / (sum(plan.pieces) * plan.steps / 1e9)


class Limits:
    """The limits of one `psum bench`, each measured once, when it is first needed.

    Args:
        note: Told what is measured, and the result.
        measure: See the function.
    """

    def __init__(self, note: Callable[[str], None], measure: Callable[[Plan], float] = measure) -> None:
        self._note = note
        self._measure = measure
        self._found: dict[tuple[str, int, str], float | None] = {}

    def of(self, workload: str, workers: int, plane: str, dtype: str) -> float | None:
        """Return the limit in processor seconds of all processes per GB of one worker's payload.

        Args:
            workload: The name of the workload.
            workers: The number of workers.
            plane: The plane of the payloads.
            dtype: The label of the element type.

        Returns:
            None if there is no such pipeline without psum, as for several planes at once, or if it failed.
        """
        if plane not in PLANES or dtype != _TYPE.label:
            return None
        which = workload, workers, plane
        if which not in self._found:
            try:
                found = self._measure(plan(*which))
            except NoLimitError as error:
                self._note(f"cannot measure what this machine allows for {plane} on {workload}: {error}")
                self._found[which] = None
            else:
                self._note(
                    f"{plane} without psum, {workload}, {count(workers, 'worker')}: {found:.2f} CPU s per GB in all"
                )
                self._found[which] = found
        return self._found[which]
