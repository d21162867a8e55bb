"""The three source roots make one namespace package."""

import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize("root", ["proto", "aggregator", "client"])
def test_no_source_root_hides_the_others(root: str) -> None:
    """An __init__.py directly in psum/ would make the other roots' packages unimportable."""
    assert not (ROOT / root / "psum" / "__init__.py").exists()


@pytest.mark.parametrize("package", ["v1", "wire", "aggregator", "client", "cli"])
def test_every_package_can_be_imported_and_is_typed(package: str) -> None:
    """Each portion is found under the one name, and carries its type marker."""
    module = importlib.import_module(f"psum.{package}")
    assert module.__file__ is not None
    assert pathlib.Path(module.__file__).with_name("py.typed").exists()
