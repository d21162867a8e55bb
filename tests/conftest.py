"""Hooks and fixtures for all tests."""

import gc
import os
import pathlib
import time
from collections.abc import Generator
from typing import Final

import hypothesis
import pytest

from tests.processes import Leftovers, Moment
from tests.signals import heed_signals

# As the client does, also for tests of aggregators: gRPC's fork handlers abort one of a hundred forked children.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

# On a busy machine, an example may take any time. pytest's timeout ends tests that hang.
hypothesis.settings.register_profile("psum", deadline=None)
hypothesis.settings.load_profile("psum")

#: Tests whose subject is protocols, processes, files and MXNet, and does not depend on the version of Python.
_ONCE: Final = (
    "aggregator/access",
    "aggregator/core",
    "aggregator/observe",
    "aggregator/processes",
    "aggregator/relay",
    "aggregator/service",
    "bench",
    "chaos",
    "cli",
    "client/core",
    "deploy",
    "fuzz",
    "integration/test_admission_limits.py",
    "integration/test_codecs.py",
    "integration/test_comparison.py",
    "integration/test_data_connection.py",
    "integration/test_data_connection_access.py",
    "integration/test_data_connection_order.py",
    "integration/test_data_ports.py",
    "integration/test_fault_report.py",
    "integration/test_few_descriptors.py",
    "integration/test_log.py",
    "integration/test_members.py",
    "integration/test_minimal_client.py",
    "integration/test_names.py",
    "integration/test_older_data_connections.py",
    "integration/test_priority.py",
    "integration/test_processes.py",
    "integration/test_relay_groups.py",
    "integration/test_relay_security.py",
    "integration/test_relayed_processes.py",
    "integration/test_relays.py",
    "integration/test_security.py",
    "integration/test_shared_memory.py",
    "integration/test_small_shm.py",
    "integration/test_staging.py",
    "integration/test_statistics.py",
    "integration/test_timeline.py",
    "integration/test_tokens.py",
    "integration/test_weights.py",
    "model",
    "mxnet/arrays",
    "mxnet/staging",
    "mxnet/test_installation.py",
    "mxnet/test_order.py",
    "mxnet/test_parameter_check.py",
    "mxnet/test_workers.py",
    "test_layout.py",
    "test_pages.py",
    "test_processes.py",
    "test_readme.py",
    "test_scripts.py",
)

_HERE: Final = pathlib.Path(__file__).parent

#: How long processes may take to end after the last test.
_ENDING_SECONDS: Final = 5.0

_leftovers: Final = pytest.StashKey[Leftovers]()
_started: Final = pytest.StashKey[Moment]()
_failed: Final = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Give processes that tests start the default signals, and a mark by which they are found."""
    heed_signals()
    config.stash[_leftovers] = Leftovers()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that scripts/test runs on one interpreter only."""
    for item in items:
        alike = item.get_closest_marker("alike") is not None
        if alike or any(item.path.is_relative_to(_HERE / part) for part in _ONCE):
            item.add_marker(pytest.mark.once)


def pytest_collection_finish() -> None:
    """Leave what is loaded by now out of garbage collections. Otherwise they take a quarter of the tests' time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _moment_of_start(request: pytest.FixtureRequest) -> None:
    """Record when the test started, after shared fixtures, whose processes do not belong to this test."""
    request.node.stash[_started] = Moment()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record which tests failed."""
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """End processes that a failed test has left running, so that they do not disturb the next test."""
    result = yield
    if item.stash.get(_failed, False) and _started in item.stash:
        item.config.stash[_leftovers].end(item.stash[_started])
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run whose tests pass and leave processes running. End all leftovers."""
    leftovers = session.config.stash[_leftovers]
    deadline = time.monotonic() + _ENDING_SECONDS
    while leftovers.running() and not session.testsfailed and time.monotonic() < deadline:
        time.sleep(0.05)
    if left := leftovers.end():
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line("\nleft running by tests, and killed:", red=True)
            for process in left:
                reporter.write_line(f"  {process.pid} {process.command}")
        if session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
