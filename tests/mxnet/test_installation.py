"""MXNet's installation: any order of imports, any NumPy below 2, and one wheel."""

import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from psum.mxnet import compat


def test_the_sorted_imports_of_a_program_that_takes_mxnet_from_psum(run_python: Callable[..., Any]) -> None:
    """Sorted imports work without numpy.bool, as on Python 3.12: a program that takes MXNet from psum imports psum
    first."""
    program = """
import numpy as np
vars(np).pop("bool", None)
from psum.mxnet import BytePS, mx
assert type(mx.kv.create("byteps")) is BytePS
import mxnet
assert mxnet is mx
"""
    run_python(program).check()


def install(site: pathlib.Path, name: str, *files: str) -> None:
    """Makes the files that pip installs of a wheel."""
    info = site / f"{name.replace('-', '_')}-1.9.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.9.1\n")
    for file in files:
        (site / file).parent.mkdir(exist_ok=True)
        (site / file).touch()
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_two_wheels_of_mxnet_over_each_other_are_warned_of(tmp_path: pathlib.Path) -> None:
    """The warning about two wheels says what to do. A distribution with a similar name does not count."""
    install(tmp_path, "mxnet-coreml-converter", "mxnet_coreml_converter/__init__.py")
    install(tmp_path, "mxnet-cu117", "mxnet/__init__.py", "mxnet/libmxnet.so")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compat._check_wheels(tmp_path / "mxnet")
    install(tmp_path, "mxnet", "mxnet/__init__.py", "mxnet/libmxnet.so")
    with pytest.warns(UserWarning, match="mxnet and mxnet-cu117 are installed over each other") as caught:
        compat._check_wheels(tmp_path / "mxnet")
    assert "pip uninstall mxnet mxnet-cu117, then pip install mxnet-cu117" in str(caught[0].message)
