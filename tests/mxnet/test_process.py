"""What happens to the whole process: import, exit, lost peers, and MXNet's other engine."""

import contextlib
import os
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from psum.aggregator import Settings
from psum.mxnet.compat import MAJOR_VERSION
from tests.mxnet.processes import ALIKE, wait_for_files


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


def test_exit_hooks_with_nothing_done(run_python: Callable[..., Any]) -> None:
    """Importing alone connects to nothing and lets the process end."""
    run = run_python("import psum.mxnet", PSUM_AGGREGATORS="127.0.0.1:1", PSUM_NUM_WORKERS="2")
    run.check()
    assert run.errors == ""


@pytest.mark.skipif(MAJOR_VERSION >= 2, reason="the import of MXNet 2 itself starts its threads")
def test_importing_does_not_start_the_engine(run_python: Callable[..., Any]) -> None:
    """MXNet's engine starts its threads with the first operation on an array. A program may fork before that."""
    program = """
import os
import psum.mxnet
from psum.mxnet.compat import mx
threads = len(os.listdir("/proc/self/task"))
mx.nd.ones((1,)).wait_to_read()
print(len(os.listdir("/proc/self/task")) > threads)
"""
    assert run_python(program).check() == "True\n"


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
