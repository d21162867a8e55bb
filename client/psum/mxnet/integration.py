"""Makes the store known to MXNet, and makes the name 'byteps' work wherever MXNet takes the name of a store."""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from psum.client import reserve_store
from psum.mxnet import in_step
from psum.mxnet.compat import mx
from psum.mxnet.kvstore import BytePS
from psum.mxnet.names import NumberedName, labels_of

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
    trainer = mx.gluon.Trainer
    trainer.__init__ = _making(trainer.__init__)
    trainer._update = _updating(trainer._update)
    if (module := _find("mxnet.module.module")) is not None:
        module.Module.update = _updating(module.Module.update)


def _find(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def _creating(original: Callable[..., Any]) -> Callable[..., Any]:
    """MXNet makes no store for a single device unless the name says 'dist': each worker would train alone."""

    @functools.wraps(original)
    def create(kvstore: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(kvstore, NumberedName):
            kvstore = BytePS(number=kvstore.number).labelled(kvstore.labels)
        elif _is_ours(kvstore):
            kvstore = mx.kvstore.create(kvstore)
        return original(kvstore, *arguments, **named)

    return create


def _making(original: Callable[..., None]) -> Callable[..., None]:
    """Trainer makes a store given by name in its first step only. Its number is fixed where the Trainer is made, which
    all ranks do in one order, without a connection yet; and its keys are labelled with the names of parameters."""

    @functools.wraps(original)
    def make(self: Any, params: Any, *arguments: Any, **named: Any) -> None:
        original(self, params, *arguments, **named)
        config = self._kvstore_params
        given = config["kvstore"]
        if _is_ours(given):
            config["kvstore"] = NumberedName.of(given, reserve_store(), labels_of(self, params))
        elif isinstance(given, BytePS):
            config["kvstore"] = given.labelled(labels_of(self, params))

    return make


def _updating(original: Callable[..., None]) -> Callable[..., None]:
    """After every so many updates, parameters are checked."""

    @functools.wraps(original)
    def update(self: Any, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        in_step.updated(self)

    return update


def _is_ours(kvstore: Any) -> bool:
    return isinstance(kvstore, str) and kvstore.lower() == "byteps"


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
