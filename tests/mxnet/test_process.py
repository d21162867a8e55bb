"""What happens to the whole process: import, fork, exit, and MXNet's other engine."""

import contextlib
import os
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any, Final

import pytest

from psum.aggregator import Settings
from psum.client import PEER_FAULT_STATUS

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


def test_fork_with_outstanding_operation(run_python: Callable[..., Any]) -> None:
    """A fork waits for operations that are under way; parent and child go on, and the child may not use the store."""
    program = """
forking = threading.Event()
def complete():
    assert forking.wait(20)
    pending[0].complete()
threading.Thread(target=complete).start()
os.register_at_fork(before=forking.set)
child = os.fork()
if child == 0:
    print("child:", operations.outstanding(), (mx.nd.ones((2,)) * 2).asnumpy().tolist())
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


@ALIKE
def test_forks_between_sums_of_temporaries(run_python: Callable[..., Any]) -> None:
    """A process forks while the engine's threads drop the last references to arrays, and nobody waits for anybody."""
    program = """
import os
import psum.mxnet
from psum.mxnet.compat import mx
store = mx.kv.create("byteps")
for _ in range(16):
    for key in range(20):
        store.pushpull(key, mx.nd.ones((10,)))
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
    run_python(program).check()


def test_fork_while_another_thread_pushes(run_python: Callable[..., Any]) -> None:
    """A thread that pushes goes on after each fork, which waits for no operation that comes in between."""
    program = """
import os, threading, time
import psum.mxnet
from psum.mxnet.engine import operations
from psum.mxnet.compat import mx
store = mx.kv.create("byteps")
arrays = [mx.nd.ones((10,)) for _ in range(5)]
mx.nd.waitall()
over = threading.Event()
def push():
    while not over.is_set():
        for key, array in enumerate(arrays):
            store.pushpull(key, array)
        while pending.outstanding() > 20:
            time.sleep(0.0005)
thread = threading.Thread(target=push)
thread.start()
for _ in range(12):
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
over.set()
thread.join()
print(arrays[0].asnumpy()[0])
"""
    assert run_python(program).check().strip() == "1.0"


@ALIKE
def test_interrupt_while_a_fork_waits(run_python: Callable[..., Any]) -> None:
    """Ctrl-C while a fork waits for a sum: the fork is made once the sum is there, and the interrupt comes after it."""
    program = """
import signal, time
forking = threading.Event()
os.register_at_fork(before=forking.set)
def interrupt():
    assert forking.wait(20)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
    pending[0].complete()
threading.Thread(target=interrupt).start()
child = None
try:
    child = os.fork()
    if child == 0:
        os._exit(0)
    time.sleep(20)
except KeyboardInterrupt:
    print("interrupted", child is not None, dependent.asnumpy().tolist())
"""
    assert run_python(OUTSTANDING + program).check().splitlines() == ["interrupted True [1.0, 1.0]"]


def test_fork_in_a_callback(run_python: Callable[..., Any], aggregator: str, tmp_path: pathlib.Path) -> None:
    """A fork in psum's own thread, which alone could bring the sums, ends them in words rather than wait for ever."""
    program = f"""
import os, pathlib, time
import numpy as np
import psum.mxnet
from psum.client import shared_client
from psum.mxnet.compat import mx
here = pathlib.Path({str(tmp_path)!r})
def wait_for(name):
    while not here.joinpath(name).exists():
        time.sleep(0.02)
store, array = mx.kv.create("byteps"), mx.nd.ones((2,))
direct = shared_client().store()
if store.rank == 0:
    store.pushpull("never comes", array)
    future = direct.push_pull_async("b", np.ones(3))
    def fork(_):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    future.add_done_callback(fork)
    here.joinpath("ready").touch()
    try:
        array.wait_to_read()
    except mx.base.MXNetError as error:
        print(error)
    here.joinpath("over").touch()
else:
    wait_for("ready")
    direct.push_pull("b", np.ones(3))
    wait_for("over")
"""
    job = {"PSUM_AGGREGATORS": aggregator, "PSUM_NUM_WORKERS": "2"}
    forking, peer = [run_python(program, PSUM_RANK=rank, **job) for rank in "01"]
    assert [run.wait().status for run in (forking, peer)] == [0, 0], forking.errors
    assert "a callback of psum's forked rank 0's process" in forking.output


def test_forked_child_can_exit(run_python: Callable[..., Any]) -> None:
    """A forked child that ends in the ordinary way runs no exit hook of its parent's."""
    program = """
pending[0].complete()
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
from psum.mxnet.compat import mx
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


@pytest.mark.parametrize("crash", [pytest.param(False, marks=ALIKE), True])
def test_exit_with_outstanding_sum(run_python: Callable[..., Any], aggregator: str, crash: bool) -> None:
    """A process with a sum under way that never comes ends soon all the same, and says so; a crash stays a crash."""
    program = """
import psum.mxnet
from psum.mxnet.engine import lifecycle
from psum.mxnet.compat import mx
lifecycle.EXIT_PATIENCE_SECONDS = 0.1
array = mx.nd.zeros((2,))
mx.kv.create("byteps").pushpull("w", array)
dependent = array + 1
"""
    job = {"PSUM_AGGREGATORS": aggregator, "PSUM_NUM_WORKERS": "2"}
    run = run_python(program + ("raise ValueError('crashed')" if crash else ""), **job).wait()
    assert run.status == (1 if crash else 0)
    assert "1 sums under way" in run.errors
    assert ("ValueError: crashed" in run.errors) == crash


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
    ("last", "status"),
    [
        pytest.param("array.wait_to_read()", 1, id="read", marks=ALIKE),
        pytest.param("", 0, id="unread", marks=ALIKE),
        pytest.param("sys.exit(3)", 3, id="exit"),
    ],
)
def test_a_failed_sum_is_told_once(run_python: Callable[..., Any], aggregator: str, last: str, status: int) -> None:
    """By the error where it is read, else by a line at the end; MXNet's exit handler adds no traceback."""
    program = """
import sys
import psum.mxnet
from psum.client import PsumError
from psum.mxnet.engine import lifecycle
from psum.mxnet.compat import mx
array, other = mx.nd.zeros((2,)), mx.nd.zeros((2,))
store = mx.kv.create("byteps")
store.pushpull("w", array)
store.pushpull("v", other)
next(iter(lifecycle._clients)).fail(PsumError("everything fails"))
"""
    job = {"PSUM_AGGREGATORS": aggregator, "PSUM_NUM_WORKERS": "2"}
    run = run_python(program + last, **job).wait()
    assert run.status == status
    assert run.errors.count("everything fails") == 1
    assert "_notify_shutdown" not in run.errors


@ALIKE
def test_fork_after_a_failed_sum(run_python: Callable[..., Any], aggregator: str) -> None:
    """A fork between the failure of a sum and its reader does not end the process; the reader still gets the error."""
    program = """
import os
import psum.mxnet
from psum.client import PsumError
from psum.mxnet.engine import lifecycle, operations
from psum.mxnet.compat import mx
array = mx.nd.zeros((2,))
mx.kv.create("byteps").pushpull("w", array)
next(iter(lifecycle._clients)).fail(PsumError("everything fails"))
assert operations.wait_until_idle(20)
child = os.fork()
if child == 0:
    # The error is none of the child's.
    os._exit(int(mx.nd.ones((2,)).asnumpy().sum() != 2))
assert os.waitpid(child, 0)[1] == 0
try:
    array.asnumpy()
except mx.base.MXNetError as error:
    print(error)
"""
    job = {"PSUM_AGGREGATORS": aggregator, "PSUM_NUM_WORKERS": "2"}
    run = run_python(program, **job)
    assert "everything fails" in run.check()
    assert "everything fails" not in run.errors


def test_exit_waits_for_sums(run_python: Callable[..., Any], aggregator: str) -> None:
    """A process that ends before its sums are there has contributed to them."""
    program = """
import sys
import psum.mxnet
from psum.mxnet.compat import mx
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


def test_exit_while_threads_push(run_python: Callable[..., Any]) -> None:
    """A process ends though daemon threads of its own go on pushing: after the last sum there are no more."""
    program = """
import threading
import psum.mxnet
from psum.mxnet.engine import lifecycle
from psum.mxnet.compat import mx
store = mx.kv.create("byteps")
stepped = threading.Event()
def push(thread):
    array = mx.nd.ones((10,))
    try:
        while True:
            store.pushpull(thread, array)
            array.wait_to_read()
            stepped.set()
    except mx.base.MXNetError:
        pass
for thread in range(2):
    threading.Thread(target=push, args=(thread,), daemon=True).start()
assert stepped.wait(20)
"""
    run = run_python(program)
    run.check()
    # MXNet 2 has a line of its own there.
    assert not any(word in run.errors for word in ("psum", "terminate", "Traceback"))


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
from psum.mxnet.compat import mx
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


@ALIKE
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


@ALIKE
def test_unknown_job(run_python: Callable[..., Any]) -> None:
    """A store whose aggregator is not there fails to be made after the deadline, naming the address."""
    job = {"PSUM_AGGREGATORS": "127.0.0.1:1", "PSUM_NUM_WORKERS": "2", "PSUM_CONNECT_TIMEOUT": "0.3"}
    run = run_python("import psum.mxnet, mxnet; mxnet.kv.create('byteps')", **job).wait()
    assert run.status == 1
    assert "ConnectError" in run.errors
    assert "127.0.0.1:1" in run.errors
