"""Fixtures: ranks as processes that have PyTorch, and an aggregator for them."""

import importlib.util
import pathlib
from collections.abc import Iterator
from typing import Final

import pytest

from psum.aggregator import Settings
from tests.integration.conftest import Fleet
from tests.torch.ranks import Ranks, end_server, start_server

_HERE: Final = pathlib.Path(__file__).parent

# Without PyTorch there is nothing to test here.
collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["*"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give these tests more time: the first rank imports much of PyTorch."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.timeout(180))


@pytest.fixture(scope="session")
def server() -> Iterator[None]:
    """The processes from which ranks are forked."""
    start_server()
    yield
    end_server()


@pytest.fixture(scope="session")
def shared_fleet(server: None) -> Iterator[Fleet]:
    """One aggregator for all tests that leave it running."""
    fleet = Fleet([Settings(listen=("127.0.0.1:0",))])
    yield fleet
    fleet.close()


@pytest.fixture
def ranks(shared_fleet: Fleet) -> Ranks:
    """Runs programs on ranks."""
    return Ranks(shared_fleet.addresses)


@pytest.fixture
def ranks_that_notice() -> Iterator[Ranks]:
    """Runs programs with an aggregator that notices soon that a worker is lost."""
    fleet = Fleet([Settings(listen=("127.0.0.1:0",), worker_timeout=1.0)])
    yield Ranks(fleet.addresses)
    fleet.close()


@pytest.fixture(scope="session")
def elastic_fleet(server: None) -> Iterator[Fleet]:
    """Two aggregators for all tests of elastic jobs, which notice soon that a worker has ended."""
    quick = Settings(listen=("127.0.0.1:0",), elastic_closed_timeout=0.2)
    fleet = Fleet([quick, quick])
    yield fleet
    fleet.close()


@pytest.fixture
def elastic_ranks(elastic_fleet: Fleet) -> Ranks:
    """Runs programs on ranks of elastic jobs, which may lose all but one."""
    return Ranks(elastic_fleet.addresses, {"PSUM_ELASTIC": "1"})


@pytest.fixture
def vanishing() -> Iterator[Fleet]:
    """An aggregator that a test stops."""
    fleet = Fleet([Settings(listen=("127.0.0.1:0",))])
    yield fleet
    fleet.close()
