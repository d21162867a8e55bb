"""Runs of PyTorch's tests: processes that each have one backend and one number of ranks."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Final, TypedDict

from psum.aggregator import Settings
from tests.integration.conftest import Fleet

_ROOT: Final = pathlib.Path(__file__).parents[3]
#: Reasons of tests that want another number of ranks.
_OTHER_RANKS: Final = ("world size", "odd world")


class Outcome(TypedDict):
    """What became of a test.

    Attributes:
        group: Its class.
        test: Its name.
        outcome: passed, failed or skipped.
        reason: Why it did not pass, in a line.
        details: All that is known about that.
        ranks: How many processes ran it.
    """

    group: str
    test: str
    outcome: str
    reason: str
    details: str
    ranks: int


def run(backend: str, ranks: Sequence[int], names: Sequence[str] = ()) -> list[Outcome]:
    """Run tests, and give their outcomes by class and name.

    Args:
        backend: The backend of their process groups.
        ranks: How many processes run each test. Tests that want other numbers run again with the next one.
        names: The tests; none for all.
    """
    outcomes: dict[tuple[str, str], Outcome] = {}
    missing = list(names)
    with _aggregator(backend) as variables:
        for number in ranks:
            for outcome in _run_once(backend, number, missing, variables):
                outcomes[outcome["group"], outcome["test"]] = outcome
            missing = [
                outcome["test"]
                for outcome in outcomes.values()
                if outcome["outcome"] == "skipped" and any(text in outcome["reason"] for text in _OTHER_RANKS)
            ]
            if not missing:
                break
    return [outcomes[key] for key in sorted(outcomes)]


@contextlib.contextmanager
def _aggregator(backend: str) -> Iterator[dict[str, str]]:
    """An aggregator for the block, if the backend needs one; gives the variables that name it.

    It is not in the process of the tests: when one of their processes fails, that one ends all its children.
    """
    if backend != "psum":
        yield {}
        return
    fleet = Fleet([Settings(listen=("127.0.0.1:0",))])
    try:
        yield {"PSUM_AGGREGATORS": fleet.addresses[0]}
    finally:
        fleet.close()


def _run_once(backend: str, ranks: int, names: Sequence[str], variables: dict[str, str]) -> list[Outcome]:
    with tempfile.TemporaryDirectory() as directory:
        results, log = pathlib.Path(directory) / "results", pathlib.Path(directory) / "log"
        with log.open("w") as errors:
            ended = subprocess.run(
                [sys.executable, "-m", "tests.torch.pytorch_suite.one_run", backend, str(results), *names],
                env=os.environ | variables | {"WORLD_SIZE": str(ranks)},
                cwd=_ROOT,
                stderr=errors,
                check=False,
            )
        assert not ended.returncode, (
            f"with {backend}, the tests ended with {ended.returncode}: {log.read_text()[-3000:]}"
        )
        return [json.loads(line) | {"ranks": ranks} for line in results.read_text().splitlines()]
