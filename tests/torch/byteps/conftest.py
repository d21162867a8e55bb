"""Fixtures for what programs for BytePS use."""

import itertools

import pytest

from tests.integration.conftest import Fleet

_jobs = itertools.count()


@pytest.fixture
def fleet(shared_fleet: Fleet) -> Fleet:
    """The aggregator of all tests."""
    return shared_fleet


@pytest.fixture
def job() -> str:
    """The name of a job for one test."""
    return f"byteps-{next(_jobs)}"
