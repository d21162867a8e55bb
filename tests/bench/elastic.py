"""Measures what a killed worker costs a training: with an elastic job of psum, and with what one would do otherwise.

    python -m tests.bench.elastic [--ways psum,restart] [--kills 3] [--json elastic.json]

psum       an elastic job; a new process takes the place of each killed one
restart    a job of psum that is ended as soon as a worker is; all are started again from a checkpoint
torchrun   torch.distributed with Gloo; torchrun starts all processes again from a checkpoint
torchft    torchft with Gloo; a new process takes the place of each killed one

All ways have four workers on this machine, the same step (a pause of 50 ms and an all-reduce of 4 MiB), and the same
schedule: every 25 seconds, SIGKILL hits the next rank. Checkpoints are written every 100 steps. The time lost per kill
is how long the training gets no further than it was before, beyond a usual step. So steps that are made again count.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from tests.bench import elastic_rank
from tests.bench.elastic_rank import RANKS

_PATIENCE_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.02


@dataclasses.dataclass(frozen=True)
class Result:
    """What a way has cost.

    Attributes:
        way: Its name.
        kills: How many processes were killed.
        step: Seconds of a usual step.
        lost: Seconds lost per kill.
        repeated: Steps that were made again, per kill.
    """

    way: str
    kills: int
    step: float
    lost: float
    repeated: float


class Workers:
    """The worker processes of one way.

    Args:
        way: The name of the way.
        directory: Where they report.
        environ: Their additional environment, for each rank.
        python: The interpreter that runs them.
    """

    def __init__(
        self, way: str, directory: pathlib.Path, environ: Callable[[int], dict[str, str]], python: str
    ) -> None:
        self._way = way
        self._directory = directory
        self._environ = environ
        self._python = python
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, rank: int) -> None:
        """Start the process of a rank, or of all ranks with torchrun."""
        program = [elastic_rank.__file__, self._way, str(self._directory), str(rank)]
        command = [self._python, *program]
        if self._way == "torchrun":
            options = [f"--nproc-per-node={RANKS}", "--max-restarts=1000", "--monitor-interval=0.1", "--standalone"]
            command = [self._python, "-m", "torch.distributed.run", *options, *program]
        with (self._directory / f"{rank}.log").open("ab") as log:
            self._processes[rank] = subprocess.Popen(
                command, env=os.environ | self._environ(rank), stdout=log, stderr=log, start_new_session=True
            )

    def start_all(self) -> None:
        """Start all ranks."""
        for rank in range(1 if self._way == "torchrun" else RANKS):
            self.start(rank)

    def tend(self) -> None:
        """Start what a user would start after a kill."""
        if self._way == "torchrun":
            return
        ended = [rank for rank, process in self._processes.items() if process.poll() is not None]
        if self._way != "restart":
            for rank in ended:
                self.start(rank)
        elif ended:
            # As torchrun does it: nothing waits for a time-out.
            for process in self._processes.values():
                process.kill()
                process.wait()
            self.start_all()

    def kill(self, rank: int) -> None:
        """Send SIGKILL to the process of a rank, when it has one that has begun."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                os.kill(int((self._directory / f"{rank}.pid").read_text()), signal.SIGKILL)
                return
            self.tend()
            time.sleep(_POLL_SECONDS)
        raise AssertionError(f"rank {rank} does not run; {self.logs()}")

    def close(self) -> None:
        """End all processes."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        # torchrun's workers are in sessions of their own.
        for file in self._directory.glob("*.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)

    def steps(self) -> list[tuple[float, int]]:
        """Return when each step was reported, in order of time."""
        found = []
        for file in self._directory.glob("*.steps"):
            for line in file.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    step, at = line.split()
                    found.append((float(at), int(step)))
        return sorted(found)

    def logs(self) -> str:
        """Return the end of what each process has written."""
        return "; ".join(file.read_text()[-1500:] for file in sorted(self._directory.glob("*.log")))


def measure(way: str, kills: int, period: float, python: str) -> Result:
    """Run a training of one way with kills, and say what they cost.

    Args:
        way: The name of the way.
        kills: How many processes are killed.
        period: Seconds between kills, before the first one, and after the last one.
        python: The interpreter of the workers.
    """
    with tempfile.TemporaryDirectory(prefix="psum-elastic-") as name, _services(way, pathlib.Path(name), python) as env:
        workers = Workers(way, pathlib.Path(name), env, python)
        try:
            workers.start_all()
            _wait_until(lambda: _most(workers.steps()) > 10, workers)
            begun = time.monotonic()
            moments = [begun + number * period for number in range(1, kills + 1)]
            for number, moment in enumerate(moments):
                _tend_until(moment, workers)
                workers.kill((number + 1) % RANKS)
            _tend_until(moments[-1] + period, workers)
            steps = workers.steps()
        finally:
            workers.close()
    return evaluate(way, kills, steps, begun, moments[0], moments[-1] + period)


def evaluate(
    way: str, kills: int, steps: Sequence[tuple[float, int]], begun: float, first_kill: float, ended: float
) -> Result:
    """Return what kills have cost.

    Args:
        way: The name of the way.
        kills: How many there were.
        steps: When each rank reported each step, in order of time.
        begun: When the training was going.
        first_kill: When the first kill was.
        ended: When the measurement ended.
    """
    later = [(at, step) for at, step in steps if at >= first_kill]
    start = max(step for at, step in steps if at < first_kill)
    # The moments at which the training got further than ever before. Steps that are made again are no such moments.
    moments, reached = [begun], max(step for at, step in steps if at < begun)
    for at, step in steps:
        if at >= begun and step > reached:
            moments.append(at)
            reached = step
    took = [later - earlier for earlier, later in itertools.pairwise([*moments, ended])]
    usual = statistics.median(took)
    # Steps become a little slower and faster with the load of the machine. That is no loss.
    lost = sum(each - usual for each in took if each > 3 * usual)
    # A step that is made again has the same number as one that the same rank had reported before.
    most, repeated = start, 0
    fallen: set[int] = set()
    for _, step in later:
        if step < most - 1:
            fallen.add(step)
        elif step > most:
            repeated += len(fallen)
            fallen.clear()
            most = step
    return Result(way, kills, usual, lost / kills, repeated / kills)


def table(results: Sequence[Result]) -> str:
    """Return the results as a table in Markdown."""
    rows = ["| way | kills | step | lost per kill | steps made again per kill |", "|---|---|---|---|---|"]
    rows += [f"| {r.way} | {r.kills} | {r.step * 1000:.0f} ms | {r.lost:.1f} s | {r.repeated:.0f} |" for r in results]
    return "\n".join(rows)


@contextlib.contextmanager
def _services(way: str, directory: pathlib.Path, python: str) -> Iterator[Callable[[int], dict[str, str]]]:
    """Run what a way needs besides workers, and give the environment of each rank."""
    common = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if way == "torchrun":
        # By default torchrun keeps one store over all restarts, and new processes find addresses of old ones in it.
        yield lambda rank: common | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        return
    file = directory / "address"
    if way == "torchft":
        address = f"127.0.0.1:{_free_port()}"
        command = [str(pathlib.Path(python).with_name("torchft_lighthouse")), "--min_replicas", "2"]
        command += ["--bind", address, "--quorum_tick_ms", "100", "--join_timeout_ms", "1000"]
    else:
        command = [sys.executable, "-m", "psum.cli", "aggregator", "--listen", "127.0.0.1:0", "--announce", str(file)]
        command += ["--insecure"]
    with (directory / "service.log").open("wb") as log:
        service = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        if way == "torchft":
            ports = [_free_port() for _ in range(RANKS)]
            yield lambda rank: {
                **common,
                **{"TORCHFT_LIGHTHOUSE": f"http://{address}", "RANK": "0", "WORLD_SIZE": "1"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[rank]), "REPLICA_GROUP_ID": str(rank)},
            }
            return
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not file.exists():
            assert time.monotonic() < deadline, (directory / "service.log").read_text()
            time.sleep(_POLL_SECONDS)
        given = {"PSUM_AGGREGATORS": file.read_text().strip(), "PSUM_NUM_WORKERS": str(RANKS), "PSUM_INSECURE": "1"}
        if way == "psum":
            given["PSUM_ELASTIC"] = f"2:{RANKS}"
        yield lambda rank: {**common, **given, "PSUM_RANK": str(rank)}
    finally:
        service.kill()
        service.wait()


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _most(steps: Sequence[tuple[float, int]]) -> int:
    return max((step for _, step in steps), default=0)


def _wait_until(condition: Callable[[], bool], workers: Workers) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"the training does not begin: {workers.logs()}"
        time.sleep(_POLL_SECONDS)


def _tend_until(moment: float, workers: Workers) -> None:
    while time.monotonic() < moment:
        workers.tend()
        time.sleep(_POLL_SECONDS)


def main() -> None:
    """Measure the chosen ways and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", default="psum,restart", help=f"which of {', '.join(elastic_rank.WAYS)}")
    parser.add_argument("--kills", type=int, default=3, help="number of kills (3)")
    parser.add_argument("--period", type=float, default=25.0, help="seconds between kills (25)")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the workers, such as one with PyTorch")
    parser.add_argument("--json", type=pathlib.Path, help="where the results go")
    args = parser.parse_args()
    results: list[Result] = []
    for way in args.ways.split(","):
        results.append(measure(way, args.kills, args.period, args.python))
    print(table(results))
    if args.json:
        found: list[dict[str, Any]] = [dataclasses.asdict(result) for result in results]
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
