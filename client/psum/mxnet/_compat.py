"""MXNet, imported in the way that works with the NumPy and the Python at hand.

The other modules take it from here and never import mxnet themselves: these precautions must come first.
"""

import ctypes
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np

_INSTALL: Final = "install psum's extra with it: pip install 'psum[mxnet]'"


def _import_mxnet() -> Any:
    role = os.environ.get("DMLC_ROLE", "worker")
    if role not in ("", "worker") and "mxnet" not in sys.modules:
        raise ImportError(
            f"psum.mxnet is for workers, but DMLC_ROLE={role} is in the environment, with which MXNet would become a"
            f" ps-lite {role} as soon as it is imported. Unset DMLC_ROLE here; psum's servers are started by"
            " `psum aggregator` and need no MXNet"
        )
    if int(np.__version__.partition(".")[0]) >= 2:
        raise ImportError(f"MXNet cannot be used with NumPy {np.__version__}: pip install 'numpy<2'")
    if "bool" not in vars(np):
        # Both MXNets name numpy.bool, which NumPy 1.20 deprecated and 1.24 took away.
        vars(np)["bool"] = bool
    try:
        with warnings.catch_warnings():
            # What MXNet's own source text is warned of is nothing that its user can change.
            warnings.simplefilter("ignore")
            import mxnet
    except ModuleNotFoundError as error:
        if error.name == "mxnet":
            raise ImportError(f"psum.mxnet needs MXNet, which is not installed here; {_INSTALL}") from None
        if error.name == "distutils":
            raise ImportError(
                f"MXNet needs distutils, which Python {sys.version_info.major}.{sys.version_info.minor} has only with"
                f" setuptools; {_INSTALL}"
            ) from None
        raise
    return mxnet


mx: Final = _import_mxnet()

#: The library itself; a call that can fail returns a status for check_call.
LIB: Final[Any] = mx.base._LIB

#: The same, for what neither waits nor takes long: the interpreter's lock is kept meanwhile. Where it is given up, one
#: of the engine's threads takes it and this one waits for it, which takes many times as long as such a call. The engine
#: holds no lock of its own while it calls Python, so nobody can wait for both.
QUICK: Final[Any] = ctypes.PyDLL(LIB._name, handle=LIB._handle)

check_call: Final[Callable[[int], None]] = mx.base.check_call

MXNetError: type[Exception] = mx.base.MXNetError

MAJOR_VERSION: Final = int(mx.__version__.partition(".")[0])

#: With the NaiveEngine every operation runs where it is pushed, and cannot be completed later.
ENGINE_IS_NAIVE: Final = os.environ.get("MXNET_ENGINE_TYPE") == "NaiveEngine"
