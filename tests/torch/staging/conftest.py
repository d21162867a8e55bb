"""Fixtures: aggregators that all tests of this folder share. Without torch there are no tests here."""

import importlib.util
from collections.abc import Iterator

import pytest

from psum.aggregator import Settings
from tests.integration.conftest import Fleet

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]


@pytest.fixture(scope="session")
def fleet() -> Iterator[Fleet]:
    """One aggregator. Each test has a job of its own name."""
    fleet = Fleet([Settings(listen=("127.0.0.1:0",))])
    yield fleet
    fleet.close()
