"""Fixtures: a fake client whose operations tests end by hand, real aggregators, and real worker processes."""

import contextlib
import importlib.util
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from psum.aggregator import Server, Settings
from psum.client import Contribution, ElementType, Operation, PsumError, StoreNumber, connect
from psum.client import Settings as ClientSettings
from psum.client.transport.loop_thread import LoopThread

#: How long anything in these tests may take. A worker needs 4 s of a processor, which take long on a busy machine.
PATIENCE_SECONDS = 50.0

if importlib.util.find_spec("mxnet") is None:
    collect_ignore_glob = ["test_*.py"]

_HERE = pathlib.Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ignores MXNet's deprecation warnings about itself. psum's own code must cause none."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning:mxnet"))


class FakeTicket:
    """An operation that the test ends by hand.

    Attributes:
        key, shape, element_type, operation, priority, label: As given to `reserve`.
        round: The number of operations on the key that were reserved before it.
        value: The contribution, once started; None if the operation only receives.
        reason: Why it was aborted; None if it was not.
        decided: Set when it is started or aborted.
        borrows: Whether the result may be lent.
        loan: The result, if the test lends it.
        contributions: The parts to which fewer ranks contributed.
    """

    def __init__(self, client: "FakeClient", key: str, round: int, **reserved: Any) -> None:
        self.key = key
        self.round = round
        self.shape: tuple[int, ...] = reserved["shape"]
        self.element_type: ElementType = reserved["element_type"]
        self.operation: Operation = reserved["operation"]
        self.priority: int = reserved["priority"]
        self.label: str = reserved["label"]
        self.value: np.ndarray[Any, Any] | None = None
        self.stand_in: np.ndarray[Any, Any] | None = None
        self.reason: str | None = None
        self.decided = threading.Event()
        self.contributions: list[Contribution] = []
        self.borrows = False
        self.loan: Any = None
        self._client = client
        self._target: memoryview | None = None
        self._done: Callable[[PsumError | None], None] | None = None

    def start(
        self,
        source: memoryview | None,
        target: memoryview | None,
        done: Callable[[PsumError | None], None],
        staged: int | None = None,
        *,
        borrows: bool = False,
        stands_in: bool = False,
    ) -> None:
        assert not self.decided.is_set()
        if source is not None:
            self.value = np.frombuffer(source, self.element_type.numpy).reshape(self.shape).copy()
        if stands_in:
            assert source is None
            self.stand_in = np.frombuffer(target or b"", self.element_type.numpy).reshape(self.shape).copy()
        self._target, self._done, self.borrows = target, done, borrows
        self.decided.set()
        if self._client.failure is not None:
            self.finish(error=self._client.failure)
        elif self._client.peers is not None:
            self.finish(self._client.peers(self))
        else:
            self._client.started.put(self)

    def abort(self, reason: str) -> None:
        assert not self.decided.is_set()
        self.reason = reason
        self.decided.set()

    def finish(self, result: Any = None, *, error: PsumError | None = None) -> None:
        """Ends the operation with a result (by default this rank's value) or an error."""
        target, done = self._target, self._done
        assert self.decided.wait(PATIENCE_SECONDS)
        self._target = self._done = None
        assert target is not None
        assert done is not None
        if error is None:
            result = self.value if result is None else result
            target[:] = np.ascontiguousarray(result, self.element_type.numpy).reshape(-1).view(np.uint8).data
        del target
        done(error)


class FakeClient:
    """Stands in for psum.client.Client.

    Attributes:
        reserved: All tickets, in the order of their reservation.
        started: The tickets that were started and wait for `finish`.
        peers: If set, a started ticket ends at once with the result that this returns.
        failure: If set, a started ticket fails at once with this error.
        refusal: If set, `reserve` raises this error.
    """

    rank = 0
    num_workers = 2
    local_rank = 0
    local_size = 2
    elastic = False
    settings = ClientSettings()
    number = 0
    is_current_thread = False

    def __init__(self) -> None:
        self.reserved: list[FakeTicket] = []
        self.started: queue.Queue[FakeTicket] = queue.Queue()
        self.peers: Callable[[FakeTicket], Any] | None = None
        self.failure: PsumError | None = None
        self.refusal: PsumError | None = None

    def store(self, number: StoreNumber | None = None) -> "FakeClient":
        return self

    def allocate(self, size: int) -> None:
        return None

    def reserve(self, key: str | int, **reserved: Any) -> FakeTicket:
        if self.refusal is not None:
            raise self.refusal
        ticket = FakeTicket(self, str(key), sum(t.key == str(key) for t in self.reserved), **reserved)
        self.reserved.append(ticket)
        return ticket

    def reserve_again(self, key: str, priority: int, label: str = "") -> FakeTicket:
        last = next(ticket for ticket in reversed(self.reserved) if ticket.key == key)
        return self.reserve(
            key,
            shape=last.shape,
            element_type=last.element_type,
            operation=last.operation,
            priority=priority,
            label=label,
        )

    def next_started(self) -> FakeTicket:
        return self.started.get(timeout=PATIENCE_SECONDS)

    def fail(self, error: PsumError) -> None:
        self.failure = error
        while not self.started.empty():
            self.started.get().finish(error=error)

    def catch_up(self, timeout: float) -> bool:
        return True

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def no_error_left() -> Iterator[None]:
    """Fails a test that leaves an error in MXNet. MXNet would raise it when a later test waits for all arrays."""
    yield
    if (mxnet := sys.modules.get("mxnet")) is not None:
        mxnet.nd.waitall()


@pytest.fixture
def client() -> Iterator[FakeClient]:
    """A fake client whose operations the test ends. No operation may be outstanding after the test."""
    from psum.mxnet.engine import operations

    fake = FakeClient()
    yield fake
    is_idle = operations.wait_until_idle(5.0)
    fake.fail(PsumError("the test left this operation behind"))
    assert is_idle


@pytest.fixture
def store(client: FakeClient) -> Any:
    """A store whose operations the test ends."""
    from psum.mxnet import BytePS

    return BytePS(client)  # type: ignore[arg-type]


@pytest.fixture
def device_store(client: FakeClient) -> Any:
    """The same for which all contexts but cpu(0) are devices, whose arrays cannot be used in place."""
    from psum.mxnet import BytePS
    from psum.mxnet.compat import mx

    return BytePS(client, in_place=lambda context: bool(context == mx.cpu(0)))  # type: ignore[arg-type]


@pytest.fixture
def local_store() -> Iterator[Any]:
    """A store in a job of one worker, which needs no aggregator."""
    from psum.mxnet import BytePS
    from psum.mxnet.engine import operations

    with connect(ClientSettings()) as client:
        yield BytePS(client)
        assert operations.wait_until_idle(PATIENCE_SECONDS)


class Run:
    """A Python process of a test, with its output.

    Attributes:
        status: Its exit status.
        output: Its standard output.
        errors: Its standard error.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            env=_clean_environment() | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.status: int | None = None
        self.output = self.errors = ""

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def close(self) -> None:
        """Kills the process if it runs."""
        if self.status is None:
            self._process.kill()
            self._process.communicate()

    def wait(self) -> "Run":
        """Waits until the process has ended."""
        if self.status is not None:
            return self
        try:
            self.output, self.errors = self._process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.output, self.errors = self._process.communicate()
            self.status = self._process.returncode
            raise AssertionError(f"the process did not end; it printed:\n{self.output}\n{self.errors}") from None
        self.status = self._process.returncode
        return self

    def check(self) -> str:
        """Waits until the process succeeds; returns what it printed."""
        self.wait()
        assert self.status == 0, self.errors
        return self.output


def _clean_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PSUM_", "DMLC_", "BYTEPS_"))}
    path = os.pathsep.join(filter(None, [str(_HERE / "without_scipy"), os.environ.get("PYTHONPATH")]))
    # Several processes share a few cores.
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


@pytest.fixture
def start_run() -> Iterator[Callable[[list[str], dict[str, str]], Run]]:
    """Starts a Python process with arguments and additional environment variables. It is killed after the test."""
    with contextlib.ExitStack() as stack:

        def start(arguments: list[str], environment: dict[str, str]) -> Run:
            run = Run(arguments, environment)
            stack.callback(run.close)
            return run

        yield start


@pytest.fixture
def run_python(start_run: Callable[[list[str], dict[str, str]], Run]) -> Callable[..., Run]:
    """Starts a Python process that runs the text of a program, with additional environment variables."""

    def start(text: str, **environment: str) -> Run:
        return start_run(["-c", text], environment)

    return start


@pytest.fixture
def aggregator_settings() -> Settings:
    """The settings of the aggregator. A test may parametrize them."""
    return Settings(listen=("127.0.0.1:0",))


@pytest.fixture
def aggregator(aggregator_settings: Settings) -> Iterator[str]:
    """The address of an aggregator that runs in this process."""
    thread = LoopThread("aggregator")
    server = Server(aggregator_settings)
    thread.run(server.start(), PATIENCE_SECONDS)
    yield server.addresses[0]
    thread.run(server.stop(0.2), PATIENCE_SECONDS)
    thread.stop()


@pytest.fixture
def run_alone(start_run: Callable[[list[str], dict[str, str]], Run]) -> Callable[..., Run]:
    """Starts a program of the folder `programs` as a job of one worker."""

    def run(program: str, *arguments: str, **environment: str) -> Run:
        return start_run([str(_HERE / "programs" / program), *arguments], environment)

    return run


@pytest.fixture
def start_workers(aggregator: str, run_alone: Callable[..., Run]) -> Callable[..., list[Run]]:
    """Starts a program of the folder `programs` as workers of one job, all of them or those of some ranks."""

    def start(
        program: str, *arguments: str, num_workers: int = 2, ranks: Sequence[int] | None = None, **environment: str
    ) -> list[Run]:
        job = environment | {
            "PSUM_AGGREGATORS": aggregator,
            "PSUM_NUM_WORKERS": str(num_workers),
            "PSUM_LOCAL_SIZE": str(num_workers),
        }
        names = map(str, range(num_workers) if ranks is None else ranks)
        return [run_alone(program, *arguments, **job, PSUM_RANK=rank, PSUM_LOCAL_RANK=rank) for rank in names]

    return start


@pytest.fixture
def run_workers(start_workers: Callable[..., list[Run]]) -> Callable[..., list[Run]]:
    """Runs a program of the folder `programs` as all workers of one job; returns the ended processes."""

    def run(program: str, *arguments: str, num_workers: int = 2, **environment: str) -> list[Run]:
        return [run.wait() for run in start_workers(program, *arguments, num_workers=num_workers, **environment)]

    return run
