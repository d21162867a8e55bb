"""One rank of `psum bench`: `python -m psum.cli._bench_worker PLAN`, with PLAN as JSON."""

import dataclasses
import json
import pathlib
import sys
import time
from concurrent.futures import Future
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from psum.cli._workloads import Values, sizes
from psum.client import Client, ElementType, PsumError, Store, connect, fetch_status


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every rank does.

    Attributes:
        workload: The name of the workload.
        element_type: The label of the element type.
        warmup: Steps before the timed ones.
        steps: Timed steps.
        measurement: The file that rank 0 writes its measurement to.
        progress: Whether rank 0 shows on standard error what it is doing.
    """

    workload: str
    element_type: str
    warmup: int
    steps: int
    measurement: str
    progress: bool

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def load(cls, text: str) -> Self:
        """From JSON."""
        return cls(**json.loads(text))


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What rank 0 measured over the timed steps.

    Attributes:
        seconds: From the first push-pull until the last sum.
        cpu_seconds: Processor time of rank 0's process meanwhile.
        aggregator_cpu_seconds: Processor time of all aggregators together meanwhile.
        payload_bytes: Bytes that one worker push-pulled, counted once for there and back.
        plane: How the payloads crossed; where it differed between aggregators, all of the ways.
    """

    seconds: float
    cpu_seconds: float
    aggregator_cpu_seconds: float
    payload_bytes: int
    plane: str

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def load(cls, text: str) -> Self:
        """From JSON."""
        return cls(**json.loads(text))


class WrongSumError(PsumError):
    """A sum came back that is not the sum of what was pushed."""


class _Rank:
    """The work of one rank."""

    def __init__(self, client: Client, plan: Plan) -> None:
        self._client = client
        self._plan = plan
        self._store: Store = client.store()
        self._element_type = ElementType[plan.element_type.upper()]
        self._values = Values(self._element_type, client.num_workers)
        storage = self._element_type.numpy
        self._tensors: list[npt.NDArray[Any]] = [np.zeros(n, storage) for n in sizes(plan.workload)]
        self._sums = [np.zeros_like(tensor) for tensor in self._tensors]

    def measure(self) -> Measurement:
        """Runs the plan.

        Raises:
            WrongSumError: A sum was wrong.
            PsumError: A sum could not be had.
        """
        self._show("warming up")
        self._fill(turn=0)
        for _ in range(self._plan.warmup):
            self._step()
        self._fill(turn=1)
        for total in self._sums:
            total.fill(0)
        self._show("measuring")
        self._wait_for_all()
        aggregators_before = self._aggregator_cpu_seconds()
        self._wait_for_all()
        cpu_before, before = time.process_time(), time.perf_counter()
        for _ in range(self._plan.steps):
            self._step()
        seconds, cpu_seconds = time.perf_counter() - before, time.process_time() - cpu_before
        self._wait_for_all()
        aggregators_after = self._aggregator_cpu_seconds()
        self._show("checking the sums")
        self._check(turn=1)
        self._show(" ")
        return Measurement(
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            aggregator_cpu_seconds=aggregators_after - aggregators_before,
            payload_bytes=self._plan.steps * sum(tensor.nbytes for tensor in self._tensors),
            plane="+".join(sorted(set(self._client.planes))),
        )

    def _step(self) -> None:
        pending: list[Future[None]] = [
            self._store.push_pull_async(number, tensor, out, priority=-number, element_type=self._element_type)
            for number, (tensor, out) in enumerate(zip(self._tensors, self._sums, strict=True))
        ]
        for future in pending:
            future.result()

    def _fill(self, turn: int) -> None:
        for number, tensor in enumerate(self._tensors):
            self._values.fill(tensor, rank=self._client.rank, tensor=number, turn=turn)

    def _check(self, turn: int) -> None:
        wrong = [n for n, out in enumerate(self._sums) if not self._values.is_sum(out, tensor=n, turn=turn)]
        if wrong:
            raise WrongSumError(
                f"rank {self._client.rank} got wrong sums for {len(wrong)} of {len(self._sums)} tensors of"
                f" {self._plan.workload}, the first of them number {wrong[0]}; please report this"
            )

    def _wait_for_all(self) -> None:
        self._store.push_pull("all are here", np.zeros(1, np.float32))

    def _aggregator_cpu_seconds(self) -> float:
        if self._client.rank != 0:
            return 0.0
        settings = self._client.settings
        return sum(fetch_status(address, settings=settings).cpu_seconds for address in settings.aggregators)

    def _show(self, text: str) -> None:
        if self._plan.progress and self._client.rank == 0:
            print(text, end="\r", file=sys.stderr)


def main(argument: str) -> int:
    """Runs one rank as the environment and the plan say; returns the exit status."""
    plan = Plan.load(argument)
    try:
        with connect() as client:
            measurement = _Rank(client, plan).measure()
            if client.rank == 0:
                pathlib.Path(plan.measurement).write_text(measurement.dump())
    except PsumError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
