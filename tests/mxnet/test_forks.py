"""A process forks while sums are under way."""

import pathlib
from collections.abc import Callable
from typing import Any

from tests.mxnet.processes import ALIKE, OUTSTANDING


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
        while operations.outstanding() > 20:
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
