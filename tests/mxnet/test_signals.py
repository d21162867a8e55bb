"""Signals and Ctrl-C while MXNet waits for sums."""

import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from psum.client import PEER_FAULT_STATUS
from tests.mxnet.processes import ALIKE, OUTSTANDING, wait_for_files


@pytest.mark.parametrize(
    "outstanding",
    [pytest.param(False, id="sum comes", marks=ALIKE), pytest.param(True, id="sum never comes")],
)
def test_interrupt_in_mid_step(
    run_python: Callable[..., Any], aggregator: str, tmp_path: pathlib.Path, outstanding: bool
) -> None:
    """Ctrl-C while MXNet waits for a sum ends the process within seconds, and its peer is told which rank has left."""
    program = """
import pathlib, sys
import psum.mxnet
from psum.mxnet.compat import MXNetError, mx
store, array = mx.kv.create("byteps"), mx.nd.zeros((2,))
store.pushpull("first", array)
array.wait_to_read()
try:
    for step in range(100000 if store.rank == 1 or {} else 3):
        store.pushpull("w", array)
        array.wait_to_read()
        if step == 2:
            pathlib.Path({!r}).joinpath(str(store.rank)).touch()
    store.pushpull("other", array)
    array.wait_to_read()
except MXNetError as error:
    print(error)
"""
    text = program.format(not outstanding, str(tmp_path))
    job = {"PSUM_AGGREGATORS": aggregator, "PSUM_NUM_WORKERS": "2"}
    peer, interrupted = (run_python(text, PSUM_RANK=rank, **job) for rank in "01")
    wait_for_files(tmp_path / "0", tmp_path / "1")
    begin = time.monotonic()
    interrupted.signal(signal.SIGINT)
    # Where it comes in a callback of MXNet's engine, it reaches the program as the error of that operation.
    assert interrupted.wait().status in (-signal.SIGINT, 1)
    assert time.monotonic() - begin < 10
    assert "KeyboardInterrupt" in interrupted.errors + interrupted.output
    assert "rank 1 " in peer.check()
    # The interrupt may also have come in the midst of a push.
    assert "has left job" in peer.output or "could not contribute" in peer.output


#: Waits for the outstanding operation, sends a signal meanwhile, and tells what happens.
SIGNALLED = """
import signal
from psum.mxnet.engine import interrupts as _interrupts
def send(number, seconds=0.2):
    threading.Timer(seconds, lambda: os.kill(os.getpid(), number)).start()
"""


@ALIKE
def test_handlers_run_while_mxnet_waits(run_python: Callable[..., Any]) -> None:
    """A handler of the program's runs while MXNet waits for a sum in any of its ways, and the sum comes after it.

    Each time it is the handler that has the sum come.
    """
    program = """
import pickle, tempfile
import numpy as np
def handle(*_):
    print("handled", end=" ")
    pending.pop().complete()
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, handle)
file = tempfile.NamedTemporaryFile()
def write(array):
    array[:] = np.full(2, 4.0)
for name, wait in {
    "read": lambda a: a.wait_to_read(),
    "copy": lambda a: a.asnumpy(),
    "scalar": lambda a: a[0].asscalar(),
    "all": lambda a: mx.nd.waitall(),
    "save": lambda a: mx.nd.save(file.name, [a]),
    "pickle": lambda a: pickle.dumps(a),
    "write": write,
}.items():
    send(signal.SIGTERM if name == "read" else signal.SIGUSR1)
    wait(dependent)
    print(name, dependent.asnumpy().tolist())
    running.clear()
    operations.push(array, operations.Operation(run, lambda: None))
    dependent = array + 1
    assert running.wait(20)
pending.pop().complete()
"""
    lines = run_python(OUTSTANDING + SIGNALLED + program).check().splitlines()
    names = ("read", "copy", "scalar", "all", "save", "pickle")
    assert lines == [*(f"handled {name} [1.0, 1.0]" for name in names), "handled write [4.0, 4.0]"]


def test_interrupt_leaves_the_sum(run_python: Callable[..., Any]) -> None:
    """Ctrl-C comes through at once where MXNet waits for a sum; a program that goes on, as a notebook, has the sum."""
    program = """
_interrupts.PATIENCE_SECONDS = 1.0
_interrupts.forget()
_interrupts.watch(lambda: print("ended"))
send(signal.SIGINT)
try:
    dependent.wait_to_read()
except KeyboardInterrupt:
    print("interrupted")
threading.Timer(1.5, pending[0].complete).start()
print(dependent.asnumpy().tolist())
"""
    assert run_python(OUTSTANDING + SIGNALLED + program).check().splitlines() == ["interrupted", "[1.0, 1.0]"]


def test_an_interrupt_that_is_heard_late_does_not_end_a_later_wait(run_python: Callable[..., Any]) -> None:
    """The thread that hears of signals may run only after the KeyboardInterrupt was raised."""
    program = """
_interrupts.PATIENCE_SECONDS = 0.2
threading.Timer(0.1, _interrupts._heed, [lambda: print("ended")]).start()
threading.Timer(0.6, pending[0].complete).start()
print(dependent.asnumpy().tolist())
"""
    assert run_python(OUTSTANDING + SIGNALLED + program).check().splitlines() == ["[1.0, 1.0]"]


@pytest.mark.parametrize("own_handler", [False, pytest.param(True, marks=ALIKE)])
def test_interrupt_in_an_operator(run_python: Callable[..., Any], own_handler: bool) -> None:
    """An operator that waits for a sum by itself is interrupted by ending the sums, unless the program has a handler.

    Such a program may want to finish its step.
    """
    program = """
_interrupts.PATIENCE_SECONDS = 0.3
_interrupts.forget()
def end():
    print("ended")
    pending[0].complete()
_interrupts.watch(end)
if {0}:
    signal.signal(signal.SIGINT, lambda *_: print("handled"))
    threading.Timer(1.0, pending[0].complete).start()
send(signal.SIGINT)
try:
    mx.nd.contrib.boolean_mask(dependent, dependent).wait_to_read()
except KeyboardInterrupt:
    print("interrupted")
"""
    lines = run_python(OUTSTANDING + SIGNALLED + program.format(own_handler)).check().split()
    assert lines == (["handled"] if own_handler else ["ended", "interrupted"])


@pytest.mark.parametrize("action", [pytest.param("asks for one more step", marks=ALIKE), "exits"])
def test_signal_in_mid_step(
    run_python: Callable[..., Any], aggregator: str, tmp_path: pathlib.Path, action: str
) -> None:
    """A handler runs at once while a peer is stuck. If it only takes a note, the step ends with the right sum.

    The peer contributes only after that handler has run.
    """
    program = """
import pathlib, signal, sys, time
import psum.mxnet
from psum.mxnet.compat import mx
store, array, here = mx.kv.create("byteps"), mx.nd.ones((2,)), pathlib.Path({!r})
stopping = []
def handle(*_):
    stopping.append(True)
    here.joinpath("handled").touch()
    if {}:
        sys.exit(7)
signal.signal(signal.SIGTERM, handle)
store.pushpull("first", array)
array.wait_to_read()
here.joinpath(str(store.rank)).touch()
while store.rank == 1 and not here.joinpath("handled").exists():
    time.sleep(0.02)
try:
    for step in range(2):
        store.pushpull("w", array)
        print(array.asnumpy().tolist(), bool(stopping))
except mx.base.MXNetError as error:
    print(error)
"""
    exits = action == "exits"
    job = {"PSUM_AGGREGATORS": aggregator, "PSUM_NUM_WORKERS": "2"}
    signalled, peer = (run_python(program.format(str(tmp_path), exits), PSUM_RANK=rank, **job) for rank in "01")
    wait_for_files(tmp_path / "0", tmp_path / "1")
    # It waits for the sum by now, or soon.
    time.sleep(0.3)
    signalled.signal(signal.SIGTERM)
    assert signalled.wait().status == (7 if exits else 0), signalled.errors
    output = peer.check()
    if exits:
        assert signalled.output == ""
    else:
        assert signalled.output.splitlines() == ["[4.0, 4.0] True", "[8.0, 8.0] True"]
        assert output.splitlines() == ["[4.0, 4.0] False", "[8.0, 8.0] False"]


@pytest.mark.parametrize(
    "wait", ["array.wait_to_read()", pytest.param("mx.nd.contrib.boolean_mask(array, array)", marks=ALIKE)]
)
def test_a_signal_without_a_handler_in_mid_step(
    run_python: Callable[..., Any], aggregator: str, tmp_path: pathlib.Path, wait: str
) -> None:
    """It ends the process at once while MXNet waits for a sum. So does the error that the peer gets, with its status.

    Where MXNet waits within an operator, no handler in Python could run.
    """
    program = """
import pathlib
import psum.mxnet
from psum.mxnet.compat import mx
store, array, here = mx.kv.create("byteps"), mx.nd.ones((2,)), pathlib.Path({!r})
store.pushpull("first", array)
array.wait_to_read()
store.pushpull(str(store.rank), array)
here.joinpath(str(store.rank)).touch()
{}
"""
    job = {"PSUM_AGGREGATORS": aggregator, "PSUM_NUM_WORKERS": "2"}
    text = program.format(str(tmp_path), wait)
    peer, ended = (run_python(text, PSUM_RANK=rank, **job) for rank in "01")
    wait_for_files(tmp_path / "0", tmp_path / "1")
    # It waits for the sum by now, or soon.
    time.sleep(0.3)
    begin = time.monotonic()
    ended.signal(signal.SIGTERM)
    in_operator = "boolean_mask" in wait
    assert ended.wait().status == (143 if in_operator else -signal.SIGTERM), ended.errors
    assert peer.wait().status == PEER_FAULT_STATUS
    assert "was ended by SIGTERM before its work was done" in peer.errors
    assert time.monotonic() - begin < 10


def test_interrupt_at_exit(run_python: Callable[..., Any], aggregator: str) -> None:
    """Ctrl-C while an ending process waits for sums only shortens that: they end, and the process says goodbye."""
    program = """
import atexit, os, signal, threading, time
import psum.mxnet
from psum.mxnet.compat import mx
array = mx.nd.zeros((2,))
mx.kv.create("byteps").pushpull("w", array)
dependent = array + 1
ending = threading.Event()
def interrupt():
    ending.wait()
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)
# A thread cannot be started any more at that time.
threading.Thread(target=interrupt, daemon=True).start()
atexit.register(ending.set)
"""
    job = {"PSUM_AGGREGATORS": aggregator, "PSUM_NUM_WORKERS": "2"}
    run = run_python(program, **job)
    run.check()
    assert "1 sums under way" in run.errors
    assert "Traceback" not in run.errors
