"""What happens to the whole process: import, fork, exit, and MXNet's other engine."""

import contextlib
import os
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from psum.aggregator import Settings

#: An operation on the engine that is outstanding and completed by hand.
OUTSTANDING = """
import os, sys, threading
import psum.mxnet
from psum.mxnet import _engine, _lifecycle
from psum.mxnet._compat import mx
store = mx.kv.create("byteps")
array = mx.nd.zeros((2,))
running, operations = threading.Event(), []
def run(operation):
    operations.append(operation)
    running.set()
_engine.push(array, _engine.Operation(run, lambda: None))
dependent = array + 1
assert running.wait(20)
"""


def wait_for_files(*paths: pathlib.Path) -> None:
    """Waits until the processes of a test have made these files."""
    deadline = time.monotonic() + 30
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_fork_with_outstanding_operation(run_python: Callable[..., Any]) -> None:
    """A fork waits for operations that are under way; parent and child go on, and the child may not use the store."""
    program = """
forking = threading.Event()
def complete():
    assert forking.wait(20)
    operations[0].complete()
threading.Thread(target=complete).start()
os.register_at_fork(before=forking.set)
child = os.fork()
if child == 0:
    print("child:", _engine.outstanding(), (mx.nd.ones((2,)) * 2).asnumpy().tolist())
    try:
        store.pushpull("w", array)
    except mx.base.MXNetError as error:
        print(error)
    sys.stdout.flush()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print("parent:", dependent.asnumpy().tolist())
store.pushpull("w", array)
print("parent:", array.asnumpy().tolist())
"""
    lines = run_python(OUTSTANDING + program).check().splitlines()
    assert lines[0] == "child: 0 [2.0, 2.0]"
    assert "forked" in lines[1]
    assert lines[2:] == ["parent: [1.0, 1.0]", "parent: [0.0, 0.0]"]


def test_forked_child_can_exit(run_python: Callable[..., Any]) -> None:
    """A forked child that ends in the ordinary way runs no exit hook of its parent's."""
    program = """
operations[0].complete()
child = os.fork()
if child == 0:
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
store.pushpull("w", array)
array.wait_to_read()
"""
    run_python(OUTSTANDING + program).check()


def test_data_loader_that_forks(run_python: Callable[..., Any]) -> None:
    """A DataLoader with worker processes works while gradients are summed."""
    program = """
import numpy as np
import psum.mxnet
from psum.mxnet._compat import mx
array = mx.np.array if mx.__version__[0] == "2" else mx.nd.array
net = mx.gluon.nn.Dense(1, in_units=2, use_bias=False)
net.initialize(mx.init.One())
trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.25}, kvstore="byteps")
data = mx.gluon.data.ArrayDataset(np.array([[1.0, 2.0]] * 4, np.float32))
for epoch in range(2):
    for batch in mx.gluon.data.DataLoader(data, batch_size=2, num_workers=1):
        with mx.autograd.record():
            loss = net(batch).sum()
        loss.backward()
        trainer.step(2)
print(net.weight.data().asnumpy().tolist())
"""
    assert run_python(program).check().strip() == "[[0.0, -1.0]]"


@pytest.mark.parametrize("crash", [False, True])
def test_exit_with_outstanding_sum(run_python: Callable[..., Any], aggregator: str, crash: bool) -> None:
    """A process with a sum under way that never comes ends soon all the same, and says so; a crash stays a crash."""
    program = """
import psum.mxnet
from psum.mxnet import _lifecycle
from psum.mxnet._compat import mx
_lifecycle.EXIT_PATIENCE_SECONDS = 0.1
array = mx.nd.zeros((2,))
mx.kv.create("byteps").pushpull("w", array)
dependent = array + 1
"""
    job = {"PSUM_AGGREGATORS": aggregator, "PSUM_NUM_WORKERS": "2"}
    run = run_python(program + ("raise ValueError('crashed')" if crash else ""), **job).wait()
    assert run.status == (1 if crash else 0)
    assert "1 sums under way" in run.errors
    assert ("ValueError: crashed" in run.errors) == crash


@pytest.mark.parametrize("outstanding", [False, True], ids=["sum comes", "sum never comes"])
def test_interrupt_in_mid_step(
    run_python: Callable[..., Any], aggregator: str, tmp_path: pathlib.Path, outstanding: bool
) -> None:
    """Ctrl-C while MXNet waits for a sum ends the process within seconds, and its peer is told which rank has left."""
    program = """
import pathlib, sys
import psum.mxnet
from psum.mxnet._compat import MXNetError, mx
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


@pytest.mark.parametrize("own_handler", [False, True])
def test_interrupt_that_the_program_handles(run_python: Callable[..., Any], own_handler: bool) -> None:
    """A program with a handler of its own, which may want to finish its step, goes on waiting for the sum."""
    program = """
import signal
from psum.mxnet import _interrupts
_interrupts.PATIENCE_SECONDS = 0.3
_interrupts.forget()
def end():
    print("ended")
    operations[0].complete()
_interrupts.watch(end)
if {}:
    signal.signal(signal.SIGINT, lambda *_: print("handled"))
threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
if {}:
    threading.Timer(1.0, operations[0].complete).start()
try:
    dependent.wait_to_read()
except KeyboardInterrupt:
    print("interrupted")
"""
    lines = run_python(OUTSTANDING + program.format(own_handler, own_handler)).check().split()
    assert lines == (["handled"] if own_handler else ["ended", "interrupted"])


@pytest.mark.parametrize(
    "aggregator_settings", [Settings(listen=("127.0.0.1:0",), worker_timeout=1.0, keepalive=1.0)], ids=[""]
)
def test_killed_worker_with_a_data_loader(
    run_alone: Callable[..., Any], aggregator: str, tmp_path: pathlib.Path
) -> None:
    """Two workers whose DataLoaders fork all the time; when one is killed, the other has its error by name, and ends.

    The forked processes have the killed worker's connection open: probes find out that nobody answers.
    """
    job = {"PSUM_AGGREGATORS": aggregator, "PSUM_NUM_WORKERS": "2", "PSUM_LOCAL_SIZE": "2"}
    files = [tmp_path / rank for rank in "01"]
    left, killed = (
        run_alone("loader.py", str(file), **job, PSUM_RANK=file.name, PSUM_LOCAL_RANK=file.name) for file in files
    )
    wait_for_files(*files)
    begin = time.monotonic()
    killed.signal(signal.SIGKILL)
    try:
        error, end = left.check().splitlines()
    finally:
        for pid in map(int, files[1].read_text().split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.wait()
    assert time.monotonic() - begin < 1 + 2 * 1 + 5
    assert "rank 1 of job 'default', " in error
    assert "vanished" in error
    assert end.endswith("ends")


@pytest.mark.parametrize(
    ("last", "status"), [("array.wait_to_read()", 1), ("", 0), ("sys.exit(3)", 3)], ids=["read", "unread", "exit"]
)
def test_a_failed_sum_is_told_once(run_python: Callable[..., Any], aggregator: str, last: str, status: int) -> None:
    """By the error where it is read, else by a line at the end; MXNet's exit handler adds no traceback."""
    program = """
import sys
import psum.mxnet
from psum.client import PsumError
from psum.mxnet import _lifecycle
from psum.mxnet._compat import mx
array, other = mx.nd.zeros((2,)), mx.nd.zeros((2,))
store = mx.kv.create("byteps")
store.pushpull("w", array)
store.pushpull("v", other)
next(iter(_lifecycle._clients)).fail(PsumError("everything fails"))
"""
    job = {"PSUM_AGGREGATORS": aggregator, "PSUM_NUM_WORKERS": "2"}
    run = run_python(program + last, **job).wait()
    assert run.status == status
    assert run.errors.count("everything fails") == 1
    assert "_notify_shutdown" not in run.errors


def test_exit_waits_for_sums(run_python: Callable[..., Any], aggregator: str) -> None:
    """A process that ends before its sums are there has contributed to them."""
    program = """
import sys
import psum.mxnet
from psum.mxnet._compat import mx
array = mx.nd.ones((1000, 1000))
store = mx.kv.create("byteps")
for key in range(10):
    store.pushpull(key, array)
if store.rank == 1:
    print(array.asnumpy().tolist()[-1][-1])
"""
    job = {"PSUM_AGGREGATORS": aggregator, "PSUM_NUM_WORKERS": "2"}
    runs = [run_python(program, PSUM_RANK=rank, **job) for rank in "01"]
    assert [run.check().strip() for run in runs] == ["", "1024.0"]
    for run in runs:
        assert "psum" not in run.errors
        assert "Error" not in run.errors


def test_exit_hooks_with_nothing_done(run_python: Callable[..., Any]) -> None:
    """Importing alone connects to nothing and lets the process end."""
    run = run_python("import psum.mxnet", PSUM_AGGREGATORS="127.0.0.1:1", PSUM_NUM_WORKERS="2")
    run.check()
    assert run.errors == ""


def test_naive_engine(run_python: Callable[..., Any]) -> None:
    """With MXNet's NaiveEngine everything works, done when the call returns, and a failed sum raises in the call."""
    program = """
import numpy as np
import psum.mxnet
from psum.client import ClosedError, Settings, connect
from psum.mxnet._compat import mx
client = connect(Settings())
store = psum.mxnet.BytePS(client, in_place=lambda context: context == mx.cpu(0))
value, outs = mx.nd.ones((2,)), [mx.nd.zeros((2,), ctx=mx.cpu(n)) for n in range(2)]
store.pushpull("a", [value, value], outs)
store.broadcast("a", value * 3, value)
far = mx.nd.ones((2,), ctx=mx.cpu(1))
store.pushpull("b", far)
print([array.asnumpy().tolist() for array in (value, *outs, far)], store.stage_statistics)
activation = mx.nd.Convolution(
    mx.nd.ones((2, 4, 16, 16)), mx.nd.ones((8, 4, 3, 3)), no_bias=True, kernel=(3, 3), num_filter=8
)
store.pushpull("c", activation)
print(bool(np.all(activation.asnumpy() == 36)))
client.fail(ClosedError("no more"))
for call in (store.pushpull, store.broadcast):
    try:
        call("a", value)
    except mx.base.MXNetError as error:
        print(error)
"""
    lines = run_python(program, MXNET_ENGINE_TYPE="NaiveEngine").check().splitlines()
    assert lines == [
        "[[3.0, 3.0], [2.0, 2.0], [2.0, 2.0], [1.0, 1.0]] StageStatistics(allocated=1, in_use=0)",
        "True",
        "no more",
        "no more",
    ]


def test_import_order_does_not_matter(run_python: Callable[..., Any]) -> None:
    """Where the NumPy at hand lets MXNet be imported first, the store is registered all the same."""
    program = """
import numpy as np
vars(np)["bool"] = bool
import mxnet as mx
import psum.mxnet
assert type(mx.kv.create("byteps")) is psum.mxnet.BytePS
"""
    run_python(program).check()


@pytest.mark.parametrize("role", ["server", "scheduler"])
def test_import_as_a_ps_lite_server(run_python: Callable[..., Any], role: str) -> None:
    """In an environment that would make MXNet a server for ever, the import fails and says why."""
    run = run_python("import psum.mxnet", DMLC_ROLE=role).wait()
    assert run.status == 1
    assert f"DMLC_ROLE={role}" in run.errors


def test_unknown_job(run_python: Callable[..., Any]) -> None:
    """A store whose aggregator is not there fails to be made after the deadline, naming the address."""
    job = {"PSUM_AGGREGATORS": "127.0.0.1:1", "PSUM_NUM_WORKERS": "2", "PSUM_CONNECT_TIMEOUT": "0.3"}
    run = run_python("import psum.mxnet, mxnet; mxnet.kv.create('byteps')", **job).wait()
    assert run.status == 1
    assert "ConnectError" in run.errors
    assert "127.0.0.1:1" in run.errors
