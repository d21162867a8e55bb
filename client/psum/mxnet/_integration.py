"""Makes the store known to MXNet, and makes the name 'byteps' work wherever MXNet takes the name of a store."""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from psum.mxnet._compat import mx
from psum.mxnet._kvstore import BytePS

#: Each has imported these functions by name, so each must be given the new ones. Module is gone in MXNet 2.
_USERS: Final = ("mxnet.model", "mxnet.gluon.trainer", "mxnet.module.module")


def install() -> None:
    """Registers the store as 'byteps', in place of MXNet's own of that name."""
    # Registering over an existing name would warn.
    mx.kvstore.KVStoreBase.kv_registry.pop("byteps", None)
    mx.kvstore.KVStoreBase.register(BytePS)
    mx.kvstore.BytePS = BytePS
    replacements: dict[str, Callable[..., Any]] = {
        "_create_kvstore": _creating(mx.model._create_kvstore),
        "_initialize_kvstore": _initializing(mx.model._initialize_kvstore),
    }
    for user in map(_find, _USERS):
        for name, replacement in replacements.items():
            if hasattr(user, name):
                setattr(user, name, replacement)


def _find(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def _creating(original: Callable[..., Any]) -> Callable[..., Any]:
    """MXNet makes no store for a single device unless the name says 'dist': each worker would train alone."""

    @functools.wraps(original)
    def create(kvstore: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(kvstore, str) and kvstore.lower() == "byteps":
            kvstore = mx.kvstore.create(kvstore)
        return original(kvstore, *arguments, **named)

    return create


def _initializing(original: Callable[..., Any]) -> Callable[..., Any]:
    """Module initializes only the host's copies in a store that keeps no weights: each device would keep its own."""

    @functools.wraps(original)
    def initialize(kvstore: Any, param_arrays: Any, arg_params: Any, param_names: Any, update_on_kvstore: bool) -> None:
        if not isinstance(kvstore, BytePS):
            original(kvstore, param_arrays, arg_params, param_names, update_on_kvstore)
            return
        for name, on_devices in zip(param_names, param_arrays, strict=True):
            kvstore.broadcast(name, arg_params[name], out=[arg_params[name], *on_devices])

    return initialize
