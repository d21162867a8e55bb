"""The three source roots make one namespace package, and nothing in it is for show."""

import importlib
import pathlib
import re

import pytest

import psum.aggregator
import psum.client
from psum.wire import BaseSettings, declarations

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


@pytest.mark.parametrize(("side", "kind"), [("client", psum.client.Settings), ("aggregator", psum.aggregator.Settings)])
def test_every_setting_does_something(side: str, kind: type[BaseSettings]) -> None:
    """What is declared and documented is read somewhere: a variable without effect is found by no linter."""
    source = "".join(path.read_text() for path in (ROOT / side / "psum").rglob("*.py"))
    unread = [name for name in declarations(kind) if not re.search(rf"(?<!\w)\w+\.{name}\b", source)]
    assert unread == []
