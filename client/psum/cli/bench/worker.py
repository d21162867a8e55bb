"""One rank of psum in a benchmark: `python -m psum.cli.bench.worker PLAN`, with PLAN as JSON."""

import os
import pathlib
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt

from psum.cli.bench.measure import Plan, System, measure
from psum.cli.bench.workloads import Values
from psum.client import Client, ElementType, PsumError, connect, fetch_status


class WrongSumError(PsumError):
    """A sum differs from the sum of the pushed values."""


class _Psum(System):
    """The common part of both interfaces to psum."""

    def __init__(self, client: Client, plan: Plan) -> None:
        self.rank = client.rank
        self._client = client
        self._barrier = client.store()
        self._sizes = plan.sizes
        self._element_type = ElementType.of(plan.element_type)
        self._values = Values(self._element_type, client.num_workers)
        self.servers = _aggregators() if self.rank == 0 else []

    @property
    def plane(self) -> str:  # type: ignore[override]
        return "+".join(sorted(set(self._client.planes)))

    def meet(self) -> None:
        self._barrier.push_pull("barrier", np.zeros(1, np.float32))

    def server_cpu_seconds(self) -> float:
        settings = self._client.settings
        return sum(fetch_status(address, settings=settings).cpu_seconds for address in settings.aggregators)

    def _filled(self, number: int, turn: int) -> npt.NDArray[Any]:
        tensor = np.empty(self._sizes[number], self._element_type.numpy)
        self._values.fill(tensor, rank=self.rank, tensor=number, turn=turn)
        return tensor

    def _check(self, sums: Sequence[npt.NDArray[Any]], turn: int) -> None:
        wrong = [n for n, out in enumerate(sums) if not self._values.is_sum(out, tensor=n, turn=turn)]
        if wrong:
            raise WrongSumError(
                f"rank {self.rank} got wrong sums for {len(wrong)} of {len(sums)} tensors, first for number {wrong[0]};"
                " please report this bug"
            )


class NumPy(_Psum):
    """NumPy arrays with psum.client, of the program's own."""

    def __init__(self, client: Client, plan: Plan) -> None:
        super().__init__(client, plan)
        self._store = client.store()
        self._tensors = [self._empty(size) for size in self._sizes]
        self._sums = [np.zeros_like(tensor) for tensor in self._tensors]
        self._pending: dict[int, Future[None]] = {}

    def _empty(self, size: int) -> npt.NDArray[Any]:
        return np.empty(size, self._element_type.numpy)

    def fill(self, turn: int) -> None:
        for number, tensor in enumerate(self._tensors):
            tensor[...] = self._filled(number, turn)
        for out in self._sums:
            out.fill(0)

    def push_pull(self, number: int) -> None:
        self._pending[number] = self._store.push_pull_async(
            number, self._tensors[number], self._sums[number], priority=-number, element_type=self._element_type
        )

    def wait(self, number: int) -> None:
        self._pending[number].result()

    def wait_for_all(self) -> None:
        for future in self._pending.values():
            future.result()

    def check(self, turn: int) -> None:
        self._check(self._sums, turn)


class Shared(NumPy):
    """NumPy arrays that Client.empty made, from which aggregators on the host read."""

    def _empty(self, size: int) -> npt.NDArray[Any]:
        return self._client.empty(size, self._element_type.numpy)


class MXNet(_Psum):
    """NDArrays with the KVStore. Sums replace the values in place, as with gradients of gluon.Trainer."""

    def __init__(self, client: Client, plan: Plan) -> None:
        super().__init__(client, plan)
        from psum.mxnet import BytePS
        from psum.mxnet.compat import mx

        self._wait_for_all = mx.nd.waitall
        self._store = BytePS(client)
        self._tensors = [mx.nd.zeros((size,), dtype=self._element_type.numpy) for size in self._sizes]
        mx.nd.waitall()

    def fill(self, turn: int) -> None:
        for number, tensor in enumerate(self._tensors):
            tensor[:] = self._filled(number, turn)
        self._wait_for_all()

    def push_pull(self, number: int) -> None:
        self._store.pushpull(str(number), self._tensors[number], priority=-number)

    def wait(self, number: int) -> None:
        self._tensors[number].wait_to_read()

    def wait_for_all(self) -> None:
        self._wait_for_all()

    def check(self, turn: int) -> None:
        # The timed steps leave sums of sums, so take one more step with this turn's values.
        self.fill(turn)
        for number in range(len(self._tensors)):
            self.push_pull(number)
        self._check([tensor.asnumpy() for tensor in self._tensors], turn)


def _aggregators() -> list[int]:
    """Return the process ids of the aggregators. This process has the same parent, `psum bench`."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if int(parent) == os.getppid() and words[2:4] == [b"psum.cli", b"aggregator"]:
                found.append(int(entry.name))
    return found


def main(argument: str) -> int:
    """Run one rank and return the exit status. The environment gives its rank, the plan its work."""
    plan = Plan.load(argument)
    try:
        with connect() as client:
            system = {"numpy": NumPy, "shared": Shared, "mxnet": MXNet}[plan.system](client, plan)
            measurement = measure(system, plan)
            if client.rank == 0:
                pathlib.Path(plan.measurement).write_text(measurement.dump())
    except PsumError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
