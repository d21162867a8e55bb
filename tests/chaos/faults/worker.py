"""A worker process that reads commands from standard input and writes events to standard output, as lines of JSON.

    python worker.py < commands > events

Commands, by "do":

    join    joins a job with "settings" of psum.client.Settings; "elastic" is
            [min, max]                                                         → joined
    push    push-pulls the next round of "key", "size" float32, without waiting → pushed, then sum
            Relays sum for "group_size" ranks each
    train   trains for "steps", or until a "stop" command                       → step …, trained
    learn   trains in an elastic job until a "stop" command, with "seed" and
            "pause"; see learning.py                                            → step …, learned
    work    runs "ranks" of a whole job in threads; see jobs.py                 → working, summed, worked
    steps   runs steps of an elastic job until a "stop" command; see elastic.py. Relays
            sum for "group_size" ranks each                                      → step …, stepped
    stop    ends a training or steps: all ranks stop after the same step
    close   leaves the job in order                                             → closed
    fork    forks a child. "uses" says whether it calls psum, "ends" how it
            ends; with "stays" it lives until it is killed                      → child, forked
    compute    stays in one call into C for longer than any test waits          → computing
    raise   raises in the main thread, inside a with statement if "within"
    exit, _exit    ends the process in this way, with operations outstanding

Every pushed value is `contribution(...)` of its key, round and rank. Any process can therefore check any sum, and the
`sum` event says whether it was right. Errors of psum are reported as an `error` event or as "error" of a `sum` event.
"""

import contextlib
import functools
import hashlib
import json
import multiprocessing
import operator
import os
import queue
import sys
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt

from psum import client as psum
from psum.client.transport import data_dialer

PATIENCE_SECONDS = 120.0

#: Sizes of a training's tensors, in elements.
SIZES = (5, 70_000, 1000, 200_000, 1)

Values = npt.NDArray[np.float32]


def contribution(key: str, round: int, rank: int, size: int) -> Values:
    """Return the values that a rank pushes, of shape (size,). They differ for every key, round and rank."""
    return np.random.default_rng([zlib.crc32(key.encode()), round, rank]).standard_normal(size, np.float32)


def expected_sum(key: str, round: int, groups: Iterable[Iterable[int]], size: int) -> Values:
    """Return the sum that all ranks must get: in each group the contributions added in rank order, then the groups."""
    sums = (functools.reduce(np.add, (contribution(key, round, rank, size) for rank in group)) for group in groups)
    return functools.reduce(np.add, sums)


def describe(error: BaseException | None) -> dict[str, Any] | None:
    """Convert an error to JSON-serialisable fields."""
    if error is None:
        return None
    return {
        "kind": type(error).__name__,
        "text": str(error),
        "ranks": list(getattr(error, "ranks", ())),
        "address": getattr(error, "address", ""),
    }


class Worker:
    """Executes the commands of one worker process."""

    def __init__(self) -> None:
        self._telling = threading.Lock()
        self._commands: queue.Queue[dict[str, Any]] = queue.Queue()
        self._stop = threading.Event()
        self._rounds: Counter[str] = Counter()
        self._client: psum.Client | None = None
        self._store: psum.Store | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, event: str, **what: Any) -> None:
        """Write an event."""
        line = json.dumps({"event": event, **what}) + "\n"
        with self._telling:
            os.write(sys.stdout.fileno(), line.encode())

    def run(self) -> None:
        """Execute commands until the input ends."""
        tasks: dict[str, Callable[..., None]] = {
            "join": self._join,
            "push": self._push,
            "train": self._train,
            "learn": self._learn,
            "work": self._work,
            "steps": self._steps,
            "close": self._close,
            "fork": self._fork,
            "compute": self._compute,
            "raise": self._raise,
            "exit": sys.exit,
            "_exit": lambda: os._exit(0),
        }
        while (command := self._commands.get())["do"] != "end":
            task = tasks[command.pop("do")]
            try:
                task(**command)
            except psum.PsumError as error:
                self.tell("error", error=describe(error))

    def _listen(self) -> None:
        # Not sys.stdin: a multiprocessing child closes it, and would block on the lock that this thread holds.
        with open(os.dup(0), buffering=1 << 16) as commands:
            for line in commands:
                command = json.loads(line)
                if command["do"] == "stop":
                    self._stop.set()
                else:
                    self._commands.put(command)
        self._commands.put({"do": "end"})

    def _join(self, settings: dict[str, Any]) -> None:
        if (elastic := settings.pop("elastic", None)) is not None:
            settings["elastic"] = psum.Elastic(*elastic)
        self._client = psum.connect(psum.Settings(**settings | {"aggregators": tuple(settings["aggregators"])}))
        self._store = self._client.store()
        self._rounds.clear()
        self.tell("joined")

    def _push(self, key: str, size: int, group_size: int = 1) -> None:
        assert self._client is not None
        assert self._store is not None
        rank, num_workers = self._client.rank, self._client.num_workers
        round = self._rounds[key]
        self._rounds[key] += 1
        value = contribution(key, round, rank, size)
        groups = (range(num_workers)[start : start + group_size] for start in range(0, num_workers, group_size))
        expected = expected_sum(key, round, groups, size)

        def tell(future: "Future[None]") -> None:
            right = bool(np.array_equal(value, expected))
            counts = [(part.start, part.stop, part.count) for part in outcome.contributors]
            self.tell("sum", key=key, round=round, right=right, counts=counts, error=describe(future.exception()))

        outcome = self._store.push_pull_async(key, value)
        self.tell("pushed", key=key, round=round)
        outcome.add_done_callback(tell)

    def _train(self, steps: int | None = None) -> None:
        assert self._client is not None
        result = train(self._client, steps, self._stop, lambda step: self.tell("step", step=step))
        self.tell("trained", **result)

    def _learn(self, seed: int, pause: float) -> None:
        from faults import learning

        assert self._client is not None
        self.tell("learned", **learning.learn(self._client, seed, pause, self._stop, self.tell))

    def _work(self, **spec: Any) -> None:
        from faults import jobs

        jobs.work(self.tell, **spec)

    def _steps(self, group_size: int = 1) -> None:
        from faults import elastic

        assert self._client is not None
        elastic.run_steps(self._client, self._stop, self.tell, group_size)

    def _close(self) -> None:
        assert self._client is not None
        begin = time.monotonic()
        self._client.close()
        self.tell("closed", seconds=time.monotonic() - begin)

    def _fork(self, *, uses: bool, ends: str) -> None:
        begin = time.monotonic()
        if ends == "multiprocessing":
            process = multiprocessing.get_context("fork").Process(target=self._be_child, args=(uses,))
            process.start()
            process.join(PATIENCE_SECONDS)
            status = process.exitcode
        else:
            pid = os.fork()
            if pid == 0:
                self._be_child(uses)
                if ends == "stays":
                    self.tell("child", pid=os.getpid())
                    time.sleep(PATIENCE_SECONDS)
                if ends == "_exit":
                    os._exit(0)
                sys.exit(0)
            status = None if ends == "stays" else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.tell("forked", status=status, seconds=time.monotonic() - begin)

    def _be_child(self, uses: bool) -> None:
        assert self._store is not None
        if uses:
            try:
                self._store.push_pull("child", np.ones(3, np.float32))
            except psum.ForkedError as error:
                self.tell("child", error=describe(error))

    def _compute(self) -> None:
        # One call into C writes the event and stays: after the event, no Python code runs that could handle a signal.
        line = json.dumps({"event": "computing"}) + "\n"
        tell = functools.partial(os.write, sys.stdout.fileno(), line.encode())
        compute = functools.partial(hashlib.pbkdf2_hmac, "sha256", b"", b"", 1 << 30)
        calls: tuple[Callable[[], object], ...] = tell, compute
        deque(map(operator.call, calls), maxlen=0)

    def _raise(self, within: bool) -> None:
        assert self._client is not None
        with self._client if within else contextlib.nullcontext():
            raise ValueError("raised on command")


def train(
    client: psum.Client, steps: int | None, stop: threading.Event, report: Callable[[int], None]
) -> dict[str, Any]:
    """Run a synthetic training: the gradients of each step depend on the rank, the step and all sums so far.

    Args:
        client: A client that has joined its job.
        steps: Number of steps. None means no limit.
        stop: When it is set on some rank, all ranks end the training after the same step.
        report: Called after each step with the number of completed steps.

    Returns:
        The number of completed "steps", and digests of the final "parameters" and of all "sums".
    """
    store = client.store()
    random = np.random.default_rng(client.rank)
    data = [random.standard_normal(size).astype(np.float32) for size in SIZES]
    parameters = [values.copy() for values in data]
    for index, values in enumerate(parameters):
        store.broadcast(f"first {index}", values)
    sums = hashlib.blake2b()
    done = 0
    # Every other rank pushes from memory that aggregators read, where they share memory.
    make = np.empty if client.rank % 2 else client.empty
    gradients: list[Values] = [make(size, np.float32) for size in SIZES]
    while done != steps:
        for gradient, values, change in zip(gradients, parameters, data, strict=True):
            np.subtract(np.roll(change, done), values, out=gradient)
        stop_votes = np.array([stop.is_set()], np.int32)
        futures = [store.push_pull_async(i, gradient, priority=-i) for i, gradient in enumerate(gradients)]
        futures.append(store.push_pull_async("stop", stop_votes))
        for future in futures:
            future.result(PATIENCE_SECONDS)
        for values, gradient in zip(parameters, gradients, strict=True):
            values += np.float32(0.1) * gradient
            sums.update(gradient.data)
        done += 1
        report(done)
        if stop_votes[0]:
            break
    digest = hashlib.blake2b(b"".join(values.tobytes() for values in parameters))
    return {"steps": done, "parameters": digest.hexdigest(), "sums": sums.hexdigest()}


if __name__ == "__main__":
    # Import `faults` as a package: use its parent folder in place of this file's folder.
    sys.path[0] = os.path.dirname(sys.path[0])
    # A worker that tries a silent data port does not answer leaving ranks, which wait for at most 3 s; see schedule.py.
    data_dialer._PATIENCE_SECONDS = 2.0
    Worker().run()
