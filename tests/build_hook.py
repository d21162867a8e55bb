"""Loads hatch_build.py. It imports hatchling, which environments for tests do not have: pip gets its own."""

import importlib.util
import pathlib
import sys
import types
from typing import Any
from unittest import mock

_PATH = pathlib.Path(__file__).parent.parent / "hatch_build.py"


class _Interface:
    """What psum's hook needs of hatchling's BuildHookInterface."""

    def __class_getitem__(cls, item: object) -> type["_Interface"]:
        return cls


def load() -> Any:
    """Return the module hatch_build."""
    name = "hatchling.builders.hooks.plugin.interface"
    interface = types.ModuleType(name)
    vars(interface)["BuildHookInterface"] = _Interface
    spec = importlib.util.spec_from_file_location("hatch_build", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    packages = {
        part: types.ModuleType(part) for part in ("hatchling", "hatchling.builders", "hatchling.builders.hooks")
    }
    packages["hatchling.builders.hooks.plugin"] = types.ModuleType("hatchling.builders.hooks.plugin")
    with mock.patch.dict(sys.modules, {**packages, name: interface}):
        spec.loader.exec_module(module)
    return module
