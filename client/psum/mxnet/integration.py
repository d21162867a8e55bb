"""Registers the store with MXNet, and makes the name 'byteps' work wherever MXNet takes the name of a store."""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from psum.client import reserve_store
from psum.mxnet import parameter_check
from psum.mxnet.compat import mx
from psum.mxnet.kvstore import BytePS
from psum.mxnet.names import NumberedName, labels_of

#: Modules that have imported the functions by name and need the new ones. MXNet 2 has no Module.
_USERS: Final = ("mxnet.model", "mxnet.gluon.trainer", "mxnet.module.module")


def install() -> None:
    """Registers the store as 'byteps', in place of MXNet's own of that name."""
    # Registering an existing name would warn.
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
    """Wraps the function that makes a store from its name.

    For a single device MXNet makes none unless the name contains 'dist': each worker would train alone.
    """

    @functools.wraps(original)
    def create(kvstore: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(kvstore, NumberedName):
            kvstore = BytePS(number=kvstore.number).labelled(kvstore.labels)
        elif _is_ours(kvstore):
            kvstore = mx.kvstore.create(kvstore)
        return original(kvstore, *arguments, **named)

    return create


def _making(original: Callable[..., None]) -> Callable[..., None]:
    """Wraps Trainer.__init__: reserves the number of its store, and labels its keys with the names of parameters.

    A Trainer that gets the name of a store makes the store in its first step only. All ranks make their Trainers in the
    same order, so the number is fixed here, without a connection.
    """

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
    """Wraps an update of parameters: checks them after every so many updates."""

    @functools.wraps(original)
    def update(self: Any, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        parameter_check.updated(self)

    return update


def _is_ours(kvstore: Any) -> bool:
    return isinstance(kvstore, str) and kvstore.lower() == "byteps"


def _initializing(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps Module's initialization.

    With a store that keeps no weights it initializes only the copies of the host: each device would keep its own.
    """

    @functools.wraps(original)
    def initialize(kvstore: Any, param_arrays: Any, arg_params: Any, param_names: Any, update_on_kvstore: bool) -> None:
        if not isinstance(kvstore, BytePS):
            original(kvstore, param_arrays, arg_params, param_names, update_on_kvstore)
            return
        for name, on_devices in zip(param_names, param_arrays, strict=True):
            kvstore.broadcast(name, arg_params[name], out=[arg_params[name], *on_devices])

    return initialize
