"""An elastic training of several processes: starts and kills workers, and compares their bits after each step."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from faults import elastic_worker

PATIENCE_SECONDS: Final = 60.0

_ROOT: Final = pathlib.Path(__file__).parents[3]


class ElasticWorker:
    """One worker process.

    Attributes:
        rank: Its rank.
        events: What it has reported.
    """

    def __init__(self, rank: int, process: "subprocess.Popen[str]", log: pathlib.Path) -> None:
        self.rank = rank
        self.process = process
        self.events: list[dict[str, Any]] = []
        self._log = log
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def log(self) -> str:
        """Everything that it has written to its standard error."""
        return self._log.read_text()

    @property
    def batch(self) -> int:
        """How many steps it has reported; 0 before the first one."""
        return max((event["batch"] for event in list(self.events) if "batch" in event), default=0)

    def await_event(self, matches: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Waits for an event, which may have been reported already."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self._changed:
            while True:
                for event in self.events:
                    if matches(event):
                        return event
                rest = deadline - time.monotonic()
                ended = self.process.poll() is not None
                if rest <= 0 or (not self._changed.wait(min(rest, 0.5)) and ended):
                    last = f"{self.events[-3:]}; it logged {self.log[-3000:]}"
                    raise AssertionError(f"rank {self.rank}: no {what} in {last}")

    def await_batch(self, batch: int) -> dict[str, Any]:
        """Waits until it has made so many steps."""
        return self.await_event(lambda event: event.get("batch", -1) >= batch, f"step {batch}")

    def await_join(self) -> int:
        """Waits until it has joined the running job. Returns its first step."""
        return int(self.await_event(lambda event: event.get("joined", False), "step after a join")["batch"])

    def await_error(self) -> dict[str, Any]:
        """Waits until it has failed."""
        return self.await_event(lambda event: "error" in event, "error")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def end(self) -> int:
        """Waits for its end and returns its exit status."""
        return self.process.wait(PATIENCE_SECONDS)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.events.append(json.loads(line))
                self._changed.notify_all()


class ElasticTraining:
    """A training whose workers come and go.

    Args:
        directory: A directory for its files.
        addresses: The aggregators.
        num_workers: The nominal size of the job.
        elastic: The least and the most ranks.
        steps: How many steps it has.
        pause: Seconds that each worker sleeps after a step.
        size: Bytes of state besides the model.
        bad: Whether the state cannot be pickled; needs a size.
        settings: Further settings of all workers.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        addresses: Sequence[str],
        *,
        num_workers: int = 3,
        elastic: tuple[int, int] = (1, 4),
        steps: int = 1_000_000,
        pause: float = 0.01,
        size: int = 0,
        bad: bool = False,
        **settings: Any,
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.addresses = addresses
        self.directory = directory
        self.workers: list[ElasticWorker] = []
        self._given = {"steps": steps, "pause": pause, "size": size, "mark": str(directory), "bad": bad}
        self._settings = {
            "aggregators": list(addresses),
            "num_workers": num_workers,
            "elastic": elastic,
            "partition_bytes": 1 << 18,
            "connect_timeout": PATIENCE_SECONDS,
        } | settings

    def start(self, *ranks: int, **given: Any) -> list[ElasticWorker]:
        """Starts workers; `given` changes their settings, or what Training was given."""
        started = []
        for rank in ranks:
            arguments = self._given | {name: value for name, value in given.items() if name in self._given}
            more = {name: value for name, value in given.items() if name not in self._given}
            arguments["settings"] = self._settings | {"rank": rank} | more
            log = self.directory / f"worker-{len(self.workers)}.log"
            with log.open("w") as errors:
                process = subprocess.Popen(
                    [sys.executable, elastic_worker.__file__, json.dumps(arguments)],
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=os.environ
                    | {
                        "OMP_NUM_THREADS": "1",
                        "OPENBLAS_NUM_THREADS": "1",
                        "PYTHONPATH": os.pathsep.join([str(_ROOT / "examples"), str(_ROOT / "tests/chaos")]),
                    },
                )
            started.append(ElasticWorker(rank, process, log))
            self.workers.append(started[-1])
        return started

    def await_mark(self, worker: ElasticWorker, what: str) -> None:
        """Waits until a worker gives its state ('gives') or takes it ('takes'), which needs a `size`."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        mark = self.directory / f"{worker.process.pid}.{what}"
        while not mark.exists():
            assert time.monotonic() < deadline, f"rank {worker.rank} never {what} a state: {worker.log[-3000:]}"
            time.sleep(0.001)

    def check(self, *expected: Sequence[int]) -> None:
        """Checks that all workers had the same bits and saw the same members after each step.

        Args:
            expected: Members that were seen one after the other. Others may have been seen between them.
        """
        seen: dict[int, tuple[str, list[int]]] = {}
        for worker in self.workers:
            for event in list(worker.events):
                if "batch" in event:
                    mine = event["digest"], event["members"]
                    assert seen.setdefault(event["batch"], mine) == mine, f"step {event['batch']} of rank {worker.rank}"
        members = iter(seen[batch][1] for batch in sorted(seen))
        for each in expected:
            assert list(each) in members, f"the members were never {each}, or not then"

    def close(self) -> None:
        """Kills all workers that run."""
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()
            worker.process.wait()
            if worker.process.stdout is not None:
                worker.process.stdout.close()
