"""What holds for all tests."""

import pathlib

import hypothesis
import pytest

# A machine that does other work too may take any time for an example; pytest's own time-out ends what hangs.
hypothesis.settings.register_profile("psum", deadline=None)
hypothesis.settings.load_profile("psum")

#: What takes long, and shows something of protocols, processes and files rather than of one version of Python.
_ONCE = ("chaos", "deploy", "fuzz", "model")

_HERE = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that scripts/test runs on one interpreter only."""
    for item in items:
        if item.path.is_relative_to(_HERE) and item.path.relative_to(_HERE).parts[0] in _ONCE:
            item.add_marker(pytest.mark.once)
