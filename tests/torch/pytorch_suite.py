"""Runs PyTorch's own tests of torch.distributed and DistributedDataParallel with psum as the backend.

usage: python -m tests.torch.pytorch_suite [--ranks 3] [NAME …]    a name is a part of tests' names; none: all tests

They come with PyTorch (torch.testing._internal.distributed.distributed_test). Each runs on processes that are forked
from this one. Prints a line for each test and the totals.
"""

import argparse
import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
import unittest
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from psum.aggregator import Settings
from tests.integration.conftest import Fleet

#: The longest that a test may take. PyTorch's limit of five minutes is longer than any of them needs.
SECONDS_EACH: Final = 30


def suite(names: list[str]) -> unittest.TestSuite:
    """The tests whose names contain one of some parts; without parts, all."""
    import torch.distributed  # noqa: F401  (before its tests)
    from torch.testing._internal import common_distributed

    import psum.torch  # noqa: F401

    # "gpu" marks many tests that need none.
    for feature in ("ddp", "subgroup", "plugin", "gpu"):
        common_distributed.DistTestCases.backend_feature[feature].add("psum")

    common_distributed.TIMEOUT_DEFAULT = SECONDS_EACH
    from torch.testing._internal.distributed import distributed_test

    class TestPsum(distributed_test.TestDistBackend, distributed_test.DistributedTest._DistTestBase):  # type: ignore[misc]
        """PyTorch's tests, on forked processes."""

        def setUp(self) -> None:
            super().setUp()
            # Quicker than processes that import PyTorch again.
            self._start_processes(multiprocessing.get_context("fork").Process)

    TestPsum.__module__, TestPsum.__qualname__ = __name__, "TestPsum"
    found = unittest.defaultTestLoader.getTestCaseNames(TestPsum)
    return unittest.TestSuite(TestPsum(name) for name in found if not names or any(part in name for part in names))


class Lines(unittest.TextTestResult):
    """Prints a line for each test at its end.

    Attributes:
        outcomes: How many tests ended how.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.outcomes: Counter[str] = Counter()

    def addSuccess(self, test: unittest.TestCase) -> None:
        self._tell(test, "passed", "")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._tell(test, "skipped", reason)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._tell(test, "failed", str(err[1]))

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        self._tell(test, "failed", str(err[1]))

    def _tell(self, test: unittest.TestCase, outcome: str, reason: str) -> None:
        self.outcomes[outcome] += 1
        lines = [line for line in reason.strip().splitlines() if line.strip()]
        last = next((line for line in reversed(lines) if "Error" in line or "Exception" in line), "".join(lines[:1]))
        print(f"{outcome} {test.id().rpartition('.')[2]} {last.strip()[:300]}", flush=True)


@contextlib.contextmanager
def aggregator() -> Iterator[str]:
    """An aggregator for the block; gives its address. multiprocessing would end it with one of the forked processes."""
    program = "from tests.torch import pytorch_suite; pytorch_suite.serve()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def serve() -> None:
    """Run an aggregator, and print its address."""
    fleet = Fleet([Settings(listen=("127.0.0.1:0",))])
    print(fleet.addresses[0], flush=True)
    threading.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs PyTorch's own tests with psum.")
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    with aggregator() as address:
        os.environ.update(BACKEND="psum", WORLD_SIZE=str(arguments.ranks), PSUM_AGGREGATORS=address)
        result = unittest.TextTestRunner(resultclass=Lines, verbosity=0).run(suite(arguments.names))
    assert isinstance(result, Lines)
    print(dict(result.outcomes))


if __name__ == "__main__":
    main()
