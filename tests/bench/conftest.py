"""Hosts that are network namespaces, where this machine can have them."""

import pytest

from tests.bench.netlab.namespaces import LabError, check, sweep


@pytest.fixture(scope="session")
def lab() -> None:
    """Skips tests if there can be no network namespaces, and says why; removes what killed tests have left."""
    try:
        check()
    except LabError as error:
        pytest.skip(str(error))
    sweep()
