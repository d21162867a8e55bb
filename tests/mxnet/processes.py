"""What tests of whole processes with MXNet have in common."""

import pathlib
import time
from typing import Final

import pytest

#: For cases that differ from others in what depends neither on Python nor on MXNet.
ALIKE: Final = pytest.mark.alike

#: An operation on the engine that is outstanding and completed by hand.
OUTSTANDING = """
import os, sys, threading
import psum.mxnet
from psum.mxnet.engine import lifecycle, operations
from psum.mxnet.compat import mx
store = mx.kv.create("byteps")
array = mx.nd.zeros((2,))
running, pending = threading.Event(), []
def run(operation):
    pending.append(operation)
    running.set()
operations.push(array, operations.Operation(run, lambda: None))
dependent = array + 1
assert running.wait(20)
"""


def wait_for_files(*paths: pathlib.Path) -> None:
    """Waits until the processes of a test have made these files."""
    deadline = time.monotonic() + 30
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.02)
