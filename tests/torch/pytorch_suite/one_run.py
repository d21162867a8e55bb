"""Runs PyTorch's own tests of torch.distributed with one backend and one number of ranks.

The module of the tests reads the backend and the number of ranks when it is imported, so each run is a process.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import unittest
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, TextIO
from unittest import mock

#: The longest that a test may take. PyTorch's limits, of five minutes and more, are longer than any of them needs.
SECONDS_EACH: Final = 180


def suite(backend: str, names: Sequence[str], directory: pathlib.Path) -> unittest.TestSuite:
    """PyTorch's tests.

    Their marks say for which backends they are, and know PyTorch's own backends only. So the marks are those for Gloo,
    the backend for the CPU. The tests then run with another one.

    Args:
        backend: The backend of the process groups.
        names: The names of the tests; none for all.
        directory: An empty directory.
    """
    os.environ["BACKEND"] = "gloo"
    # Some tests run only if the ranks meet by a file.
    os.environ["INIT_METHOD"] = f"file://{directory}/ranks"
    import torch.distributed as dist  # before its tests
    from torch.testing._internal import common_distributed

    import psum.torch  # noqa: F401
    from tests.torch.pytorch_suite import on_cpu

    common_distributed.TIMEOUT_DEFAULT = SECONDS_EACH
    common_distributed.TIMEOUT_OVERRIDE.clear()
    on_cpu.remove_gpu_marks()
    from torch.testing._internal.distributed import distributed_test

    distributed_test.BACKEND = _LikeGloo(backend)

    class DistributedTests(distributed_test.TestDistBackend, distributed_test.DistributedTest._DistTestBase):  # type: ignore[misc]
        """PyTorch's tests, on forked processes."""

        def setUp(self) -> None:
            super().setUp()
            # Quicker than processes that import PyTorch again.
            self._start_processes(multiprocessing.get_context("fork").Process)

        def run_test(self, test_name: str, parent_pipe: Any) -> None:
            with on_cpu.gpus_are_the_cpu(), mock.patch.object(dist, "monitored_barrier", _monitored_barrier):
                super().run_test(test_name, parent_pipe)

    DistributedTests.__module__, DistributedTests.__qualname__ = __name__, "DistributedTests"
    others = [value for name, value in vars(distributed_test).items() if name.startswith("TestBucketCapacityConfig")]
    tests = unittest.TestSuite()
    for cases in (DistributedTests, *others):
        found = unittest.defaultTestLoader.getTestCaseNames(cases)
        tests.addTests(cases(name) for name in found if not names or name in names)
    return tests


class _LikeGloo(str):
    """The name of a backend with which tests go the ways that they have for Gloo."""

    def __eq__(self, other: object) -> bool:
        return other == "gloo" or str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def _monitored_barrier(group: Any = None, timeout: Any = None, wait_all_ranks: bool = False) -> None:
    """torch.distributed's function without its check that the group's backend is called gloo."""
    import torch.distributed as dist

    if not dist.distributed_c10d._rank_not_in_group(group):
        seconds = timedelta(seconds=timeout) if isinstance(timeout, float) else timeout
        (group or dist.group.WORLD).monitored_barrier(seconds, wait_all_ranks=wait_all_ranks)


class Outcomes(unittest.TestResult):
    """Writes a line of JSON for each test at its end: group, test, outcome, reason and details.

    Args:
        file: Where to.
    """

    def __init__(self, file: TextIO) -> None:
        super().__init__()
        self._file = file

    def addSuccess(self, test: unittest.TestCase) -> None:
        self._tell(test, "passed", "")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._tell(test, "skipped", reason)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._tell(test, "failed", str(err[1]))

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        self._tell(test, "failed", str(err[1]))

    def _tell(self, test: unittest.TestCase, outcome: str, reason: str) -> None:
        lines = [line.strip() for line in reason.splitlines() if line.strip()]
        last = next((line for line in reversed(lines) if "Error" in line or "Exception" in line), "".join(lines[:1]))
        name = test.id().rpartition(".")[2]
        print(f"{outcome} {name} {last[:300]}", flush=True)
        line = {"group": type(test).__name__, "test": name, "outcome": outcome, "reason": last, "details": reason}
        print(json.dumps(line), file=self._file, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("backend")
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    with arguments.results.open("w") as file:
        suite(arguments.backend, arguments.names, arguments.results.parent).run(Outcomes(file))


if __name__ == "__main__":
    main()
