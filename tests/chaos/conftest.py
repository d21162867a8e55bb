"""Aggregators, workers and proxies that end with their test."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from faults.aggregators import AggregatorProcess
from faults.processes import WorkerProcess
from faults.proxy import Proxy
from faults.training import STEPS, Training, undisturbed

_HERE: Final = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give these tests more time: they start many processes, which on a busy machine takes many times as long.

    Each of their waits has a deadline of its own, which is shorter and says what was waited for.
    """
    for item in items:
        if item.path.is_relative_to(_HERE) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(180))


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """Close everything that the fixtures below create."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def make_aggregator(
    stack: contextlib.ExitStack, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., AggregatorProcess]:
    """Start aggregator processes with the given flags."""

    def make(*flags: str) -> AggregatorProcess:
        made = AggregatorProcess(tmp_path_factory.mktemp("aggregator"), flags)
        stack.callback(made.close)
        return made

    return make


@pytest.fixture
def make_proxy(stack: contextlib.ExitStack) -> Callable[..., Proxy]:
    """Create a proxy in front of an aggregator."""

    def make(target: AggregatorProcess) -> Proxy:
        made = Proxy(target.address, target.data_port)
        stack.callback(made.close)
        return made

    return make


@pytest.fixture
def make_worker(stack: contextlib.ExitStack, tmp_path: pathlib.Path) -> Callable[..., WorkerProcess]:
    """Start a worker process. If settings are given, make it join a job."""
    made: list[WorkerProcess] = []

    def make(process_1: bool = False, **settings: Any) -> WorkerProcess:
        made.append(WorkerProcess(tmp_path / f"worker-{len(made)}.log", process_1=process_1))
        stack.callback(made[-1].close)
        if settings:
            made[-1].send("join", settings={"connect_timeout": 30.0, "partition_bytes": 1 << 16} | settings)
        return made[-1]

    return make


@pytest.fixture
def make_training(stack: contextlib.ExitStack, tmp_path: pathlib.Path) -> Callable[..., Training]:
    """Start a training; see Training."""

    def make(addresses: list[str], **given: Any) -> Training:
        made = Training(tmp_path / "training", addresses, **given)
        stack.callback(made.close)
        return made

    return make


@pytest.fixture(scope="session")
def undisturbed_result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a training without faults."""
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), STEPS)
