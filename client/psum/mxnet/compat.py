"""Imports MXNet in a way that works with the installed NumPy and Python.

The other modules take MXNet from here and never import mxnet themselves: these precautions must come first.
"""

import ctypes
import importlib.util
import os
import pathlib
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import Distribution
from typing import Any, Final

import numpy as np

_PYTHON: Final = f"Python {sys.version_info[0]}.{sys.version_info[1]}"

#: The first version of Python without MXNet: there is no NumPy below 2 for it.
_TOO_NEW: Final = (3, 13)


def _import_mxnet() -> Any:
    _check_role()
    _check_versions()
    if "bool" not in vars(np):
        # Both MXNets use numpy.bool, which NumPy 1.20 deprecated and 1.24 removed.
        vars(np)["bool"] = bool
    try:
        with warnings.catch_warnings():
            # Users cannot change MXNet's source text, which causes the warnings.
            warnings.simplefilter("ignore")
            import mxnet
    except ModuleNotFoundError as error:
        if error.name == "distutils":
            raise ImportError(
                f"MXNet needs distutils, which {_PYTHON} has only with setuptools: pip install 'setuptools<81'"
            ) from None
        raise
    _check_wheels(pathlib.Path(mxnet.__file__).parent)
    return mxnet


def _check_role() -> None:
    role = os.environ.get("DMLC_ROLE", "worker")
    if role not in ("", "worker") and "mxnet" not in sys.modules:
        raise ImportError(
            f"psum.mxnet is for workers, but DMLC_ROLE={role} is in the environment, with which MXNet would become a"
            f" ps-lite {role} as soon as it is imported. Unset DMLC_ROLE here; psum's servers are started by"
            " `psum aggregator` and need no MXNet"
        )


def _check_versions() -> None:
    is_missing = sys.modules.get("mxnet") is None and importlib.util.find_spec("mxnet") is None
    is_numpy_2 = int(np.__version__.partition(".")[0]) >= 2
    if (is_missing or is_numpy_2) and sys.version_info >= _TOO_NEW:
        raise ImportError(
            f"psum.mxnet needs MXNet, which runs on Python 3.11 and 3.12 and not on {_PYTHON}; psum.client works here"
        )
    if is_missing:
        raise ImportError(
            "psum.mxnet needs MXNet, which is not installed here: pip install 'psum[mxnet]', or for a GPU one of its"
            " CUDA wheels, such as mxnet-cu117, instead of that extra"
        )
    if is_numpy_2:
        raise ImportError(f"MXNet cannot be used with NumPy {np.__version__}: pip install 'numpy<2'")


def _check_wheels(package: pathlib.Path) -> None:
    """Warns if several wheels were installed over each other: the last one runs, or parts of each."""
    found = []
    for directory in package.parent.glob("mxnet*.dist-info"):
        distribution = Distribution.at(directory)
        # Other distributions have such names too.
        if any(file.parts[:2] == ("mxnet", "__init__.py") for file in distribution.files or ()):
            found.append(distribution.metadata["Name"])
    if len(found) > 1:
        names = sorted(found)
        warnings.warn(
            f"{' and '.join(names)} are installed over each other in {package}: MXNet may be the one or the other, or"
            f" parts of both, and see no GPU. Keep one: pip uninstall {' '.join(names)}, then pip install {names[-1]}."
            " The extra psum[mxnet] brings mxnet, which is for the CPU: leave that extra out beside a CUDA wheel",
            stacklevel=2,
        )


mx: Final = _import_mxnet()

#: The library. A call that can fail returns a status for check_call.
LIB: Final[Any] = mx.base._LIB

#: The library for short calls that do not wait: they keep the interpreter's lock. A call that releases the lock often
#: loses it to one of the engine's threads, and waits for it many times as long as such a call takes. There is no
#: deadlock, because the engine holds no lock of its own while it calls Python.
QUICK: Final[Any] = ctypes.PyDLL(LIB._name, handle=LIB._handle)

check_call: Final[Callable[[int], None]] = mx.base.check_call

MXNetError: type[Exception] = mx.base.MXNetError

MAJOR_VERSION: Final = int(mx.__version__.partition(".")[0])

#: The NaiveEngine runs every operation during its push. Operations cannot be completed later.
ENGINE_IS_NAIVE: Final = os.environ.get("MXNET_ENGINE_TYPE") == "NaiveEngine"
