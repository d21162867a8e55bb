"""What an installation contains, and the errors if psum.mxnet or psum.torch lacks something."""

import os
import pathlib
import shutil
import subprocess
import sys
import tomllib
import types
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests import build_hook

ROOT = pathlib.Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def required(extra: str, python: str) -> set[str]:
    """Return the names of the packages that an extra installs on a version of Python."""
    requirements = map(Requirement, PYPROJECT["project"]["optional-dependencies"][extra])
    return {r.name for r in requirements if r.marker is None or r.marker.evaluate({"python_version": python})}


def test_the_extra_for_mxnet_is_empty_where_mxnet_cannot_run() -> None:
    """There it must not build a NumPy for MXNet. Elsewhere it has everything that MXNet needs."""
    assert required("mxnet", "3.11") == {"mxnet", "numpy"}
    assert required("mxnet", "3.12") == {"mxnet", "numpy", "setuptools"}
    assert required("mxnet", "3.13") == required("mxnet", "3.14") == set()


@pytest.mark.parametrize(
    ("python", "has_mxnet", "numpy", "complaint"),
    [
        ((3, 11), False, "1.26.4", "needs MXNet, which is not installed here: pip install 'psum[mxnet]', or for a GPU"),
        # A missing package is reported before one that is too new.
        ((3, 12), False, "2.1.0", "needs MXNet, which is not installed here"),
        ((3, 12), True, "2.1.0", "MXNet cannot be used with NumPy 2.1.0: pip install 'numpy<2'"),
        ((3, 13), False, "2.1.0", "needs MXNet, which runs on Python 3.11 and 3.12 and not on Python 3.13"),
        ((3, 13), True, "2.1.0", "needs MXNet, which runs on Python 3.11 and 3.12 and not on Python 3.13"),
    ],
)
def test_importing_psum_mxnet_says_what_is_missing(
    tmp_path: pathlib.Path, python: tuple[int, int], has_mxnet: bool, numpy: str, complaint: str
) -> None:
    """One sentence says how to install it. The core client needs none of it."""
    (tmp_path / "mxnet.py").write_text("raise SystemExit('imported')")
    program = f"""
import sys, psum.client, numpy
numpy.__version__ = {numpy!r}
sys.version_info = ({python[0]}, {python[1]}, 0, "final", 0)
if {has_mxnet}:
    sys.path.insert(0, {str(tmp_path)!r})
else:
    sys.modules["mxnet"] = None
try:
    import psum.mxnet
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert complaint in done.stdout


def test_importing_psum_torch_says_what_is_missing() -> None:
    """One sentence says how to install it."""
    program = """
import sys
class WithoutTorch:
    def find_spec(name, *_):
        if name == "torch":
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, WithoutTorch)
try:
    import psum.torch
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("psum.torch needs PyTorch, which is not installed here: pip install 'psum[torch]'")


def test_psum_brings_no_mxnet_unasked() -> None:
    """It would be installed over a CUDA wheel."""
    project = PYPROJECT["project"]
    extras = {name for name, needs in project["optional-dependencies"].items() if "mxnet" in map(_name, needs)}
    assert extras == {"mxnet"}
    assert "mxnet" not in map(_name, project["dependencies"])


def hook(root: pathlib.Path) -> tuple[Any, list[str]]:
    """Return the hook of psum's builds as hatchling makes it, for a source tree, and what it warns of."""
    made = build_hook.load().Hook()
    warnings: list[str] = []
    made.root = str(root)
    made.app = types.SimpleNamespace(display_warning=warnings.append)
    return made, warnings


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    """The part of the source tree that is compiled."""
    directory = tmp_path / "proto/psum/runtime"
    directory.mkdir(parents=True)
    shutil.copy(ROOT / "proto/psum/runtime/streaming.c", directory)
    return tmp_path


@pytest.mark.skipif(shutil.which("cc") is None or os.uname().machine != "x86_64", reason="compiles for x86_64")
def test_a_wheel_contains_the_compiled_copy(source: pathlib.Path) -> None:
    """For every Python, but for this kind of machine only. The source tree, which may be read-only, stays as it is."""
    made, warnings = hook(source)
    data: dict[str, Any] = {"force_include": {}}
    made.initialize("standard", data)
    [(library, place)] = data["force_include"].items()
    assert pathlib.Path(library).stat().st_size > 0
    assert place == "psum/runtime/libpsum_streaming.so"
    assert data["tag"] == "py3-none-linux_x86_64"
    assert data["pure_python"] is False
    made.finalize("standard", data, "")
    assert not pathlib.Path(library).exists()
    assert [path.name for path in source.rglob("*") if path.is_file()] == ["streaming.c"]
    assert warnings == []


@pytest.mark.skipif(shutil.which("cc") is None or os.uname().machine != "x86_64", reason="compiles for x86_64")
def test_an_editable_installation_compiles_beside_the_source(source: pathlib.Path) -> None:
    """Its modules are imported from there."""
    made, _ = hook(source)
    data: dict[str, Any] = {"force_include": {}}
    made.initialize("editable", data)
    made.finalize("editable", data, "")
    assert (source / "proto/psum/runtime/libpsum_streaming.so").exists()
    assert data == {"force_include": {}}


@pytest.mark.parametrize("compiler", [None, "exit 1"])
def test_an_installation_without_a_compiler_says_what_it_lacks(
    source: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, compiler: str | None
) -> None:
    """It is complete all the same, and for every kind of machine."""
    programs = tmp_path / "programs"
    programs.mkdir()
    if compiler is not None:
        (programs / "cc").write_text(f"#!/bin/sh\necho 'no header' >&2\n{compiler}\n")
        (programs / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    made, warnings = hook(source)
    data: dict[str, Any] = {"force_include": {}}
    made.initialize("standard", data)
    made.finalize("standard", data, "")
    assert data == {"force_include": {}}
    assert len(warnings) == 1
    assert ("there is no C compiler" if compiler is None else "failed: no header") in warnings[0]


def _name(requirement: str) -> str:
    return Requirement(requirement).name
