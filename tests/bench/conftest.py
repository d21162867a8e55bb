"""The fixture for tests that need network namespaces."""

import pytest

from tests.bench.netlab.namespaces import LabError, check, sweep


@pytest.fixture(scope="session")
def lab() -> None:
    """Skips tests, with the reason, if there can be no network namespaces. Removes those that killed tests left."""
    try:
        check()
    except LabError as error:
        pytest.skip(str(error))
    sweep()
