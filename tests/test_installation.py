"""What an installation contains, and the errors if psum.mxnet or psum.torch lacks something."""

import pathlib
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

PYPROJECT = tomllib.loads((pathlib.Path(__file__).parent.parent / "pyproject.toml").read_text())


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


def _name(requirement: str) -> str:
    return Requirement(requirement).name
