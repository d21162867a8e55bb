"""Engine operations that Python completes."""

import queue
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from psum.mxnet.arrays.memory import flat_bytes
from psum.mxnet.compat import ENGINE_IS_NAIVE, MXNetError, check_call, mx
from psum.mxnet.engine import interface, operations

PATIENCE_SECONDS = 30.0


class Recorder:
    """Pushes operations that the test completes, and records what the engine does with them."""

    def __init__(self) -> None:
        self.ran: queue.Queue[operations.Operation] = queue.Queue()
        self.skipped = threading.Event()

    def push(self, array: Any, run: Callable[[operations.Operation], None] | None = None, **named: Any) -> None:
        operations.push(array, operations.Operation(run or self.ran.put, self.skipped.set), **named)

    def next_run(self) -> operations.Operation:
        return self.ran.get(timeout=PATIENCE_SECONDS)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_readers_wait_for_completion(recorder: Recorder) -> None:
    """Later operations read the result of an operation, however late it was completed."""
    array = mx.nd.zeros((4,))
    recorder.push(array)
    reader = array + 1
    operation = recorder.next_run()
    flat_bytes(array, 16)[:] = mx.nd.full((4,), 5.0).asnumpy().tobytes()
    operation.complete()
    assert reader.asnumpy().tolist() == [6.0] * 4


def test_waits_for_writers(recorder: Recorder) -> None:
    """An operation runs after everything that was queued before it on its array."""
    factor = mx.nd.ones((500, 500))
    array = mx.nd.dot(mx.nd.dot(factor, factor), factor)
    recorder.push(array)
    operation = recorder.next_run()
    assert memoryview(flat_bytes(array, 4)).cast("f")[0] == 250000.0
    operation.complete()


def test_operations_on_one_array_run_in_order(recorder: Recorder) -> None:
    """The second of two operations on one array does not run before the first is complete."""
    array = mx.nd.zeros((1,))
    order: list[str] = []

    def second(operation: operations.Operation) -> None:
        order.append("second runs")
        operation.complete()

    recorder.push(array)
    recorder.push(array, second)
    first = recorder.next_run()
    order.append("first is completed")
    first.complete()
    array.wait_to_read()
    assert order == ["first is completed", "second runs"]


def test_completion_within_run(recorder: Recorder) -> None:
    """An operation may be completed before `run` returns."""
    array = mx.nd.ones((2,))
    recorder.push(array, lambda operation: operation.complete())
    array.wait_to_read()


@pytest.mark.parametrize("read", ["array", "dependent"])
def test_error_reaches_reader(recorder: Recorder, read: str) -> None:
    """A reader of the array, or of what was computed from it, gets the text of the error, whatever is in it."""
    array = mx.nd.zeros((2,))
    recorder.push(array)
    dependent = array * 2
    recorder.next_run().complete("ValueError: rank 7 was löst\nlast heard 31 s ago \0 … " + "x" * 5000)
    with pytest.raises(MXNetError, match=r"ValueError: rank 7 was löst\nlast heard 31 s ago  … x{5000}"):
        (array if read == "array" else dependent).asnumpy()


def test_completed_once(recorder: Recorder) -> None:
    """A second completion is an error, and so is one before the operation runs."""
    early = operations.Operation(lambda operation: None, lambda: None)
    with pytest.raises(RuntimeError, match="does not run"):
        early.complete()
    array = mx.nd.zeros((2,))
    recorder.push(array)
    operation = recorder.next_run()
    operation.complete()
    with pytest.raises(RuntimeError, match="completed before"):
        operation.complete("again")
    array.wait_to_read()


def test_skipped_after_failure(recorder: Recorder) -> None:
    """An operation is skipped if an earlier one on the array failed."""
    array = mx.nd.zeros((2,))
    recorder.push(array)
    recorder.push(array)
    recorder.next_run().complete("no")
    assert recorder.skipped.wait(PATIENCE_SECONDS)
    assert recorder.ran.empty()
    with pytest.raises(MXNetError, match="no"):
        array.wait_to_read()


def test_exception_in_run_fails_the_operation(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    """An error that `run` raises becomes the operation's error, and is logged."""

    def fail(operation: operations.Operation) -> None:
        raise ValueError("cannot run")

    array = mx.nd.zeros((2,))
    recorder.push(array, fail)
    with pytest.raises(MXNetError, match="ValueError: cannot run"):
        array.wait_to_read()
    assert "failed when it was run" in caplog.text


def test_higher_priority_runs_first(recorder: Recorder) -> None:
    """The engine runs the ready operation of the highest priority first."""
    order: list[str] = []
    ended = threading.Event()
    blocked = threading.Semaphore(0)
    gate = threading.Semaphore(0)

    def block(operation: operations.Operation) -> None:
        blocked.release()
        gate.acquire()
        operation.complete()

    def note(name: str) -> Callable[[operations.Operation], None]:
        def run(operation: operations.Operation) -> None:
            order.append(name)
            operation.complete()
            if len(order) == 3:
                ended.set()

        return run

    threads = 4  # MXNET_CPU_PRIORITY_NTHREADS
    arrays = [mx.nd.zeros((1,)) for _ in range(threads + 3)]
    for array in arrays:
        array.wait_to_read()
    for array in arrays[:threads]:
        recorder.push(array, block)
    for _ in range(threads):
        assert blocked.acquire(timeout=PATIENCE_SECONDS)
    for array, priority in zip(arrays[threads:], (-5, 2**40, 0), strict=True):
        recorder.push(array, note(str(priority)), priority=priority)
    gate.release()
    assert ended.wait(PATIENCE_SECONDS)
    gate.release(threads - 1)
    for array in arrays:
        array.wait_to_read()
    assert order == [str(2**40), "0", "-5"]


def test_idle_when_released(recorder: Recorder) -> None:
    """The engine is idle once every operation was released, and not before."""
    array = mx.nd.zeros((2,))
    recorder.push(array)
    operation = recorder.next_run()
    assert operations.outstanding() == 1
    assert not operations.wait_until_idle(0)
    operation.complete()
    assert operations.wait_until_idle(PATIENCE_SECONDS)
    assert operations.outstanding() == 0


def test_idle_when_the_engine_has_left_python() -> None:
    """The engine is not idle while one of its threads is in Python, even if the operation is complete and released."""
    released, leave = threading.Event(), threading.Event()

    def run(operation: operations.Operation) -> None:
        operation.complete()
        released.set()
        leave.wait(PATIENCE_SECONDS)

    array = mx.nd.zeros((2,))
    operations.push(array, operations.Operation(run, lambda: None))
    array.wait_to_read()
    assert released.wait(PATIENCE_SECONDS)
    assert operations.outstanding() == 0
    assert not operations.wait_until_idle(0.05)
    leave.set()
    assert operations.wait_until_idle(PATIENCE_SECONDS)


def test_what_an_operation_refers_to_goes_before_the_engine_has_left_python() -> None:
    """It may be the last reference to an array. MXNet frees that without the interpreter's lock, and then takes it."""
    inside: list[bool] = []

    class Referred:
        def __del__(self) -> None:
            frames = traceback.walk_stack(None)
            inside.append(any(frame.f_code in operations._INSIDE for frame, _ in frames))

    def push(referred: Referred) -> int:
        def run(_operation: operations.Operation) -> None:
            assert referred

        token = operations._registry.number()
        operations._registry.add(token, operations.Operation(run, operations.ignore))
        operations._registry.pushed(token)
        return token

    # As the engine does.
    operations._release(push(Referred()))
    assert inside == [True]


def test_held_for_one_thread(recorder: Recorder) -> None:
    """While a thread holds the engine, that thread can push, and others wait."""
    array, other = mx.nd.zeros((2,)), mx.nd.zeros((2,))
    for one in (array, other):
        one.wait_to_read()
    pushed = threading.Event()

    def push_other() -> None:
        recorder.push(other)
        pushed.set()

    assert operations.hold(PATIENCE_SECONDS)
    thread = threading.Thread(target=push_other)
    thread.start()
    recorder.push(array)
    recorder.next_run().complete()
    array.wait_to_read()
    assert not pushed.wait(0.05)
    assert recorder.ran.empty()
    operations.let_go()
    recorder.next_run().complete()
    thread.join(PATIENCE_SECONDS)
    assert pushed.is_set()
    assert operations.wait_until_idle(PATIENCE_SECONDS)


def test_a_push_that_a_handler_interrupted_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may interrupt a push when the engine has the operation already: the array fails, and nothing hangs."""
    array = mx.nd.zeros((2,))
    array.wait_to_read()
    check = check_call

    def interrupted(status: int) -> None:
        check(status)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(interface, "check_call", interrupted)
        with pytest.raises(KeyboardInterrupt):
            operations.push(array, operations.Operation(lambda operation: None, lambda: None))
    assert operations.outstanding() == 0
    with pytest.raises(mx.base.MXNetError, match="interrupted the call that was to sum this"):
        array.asnumpy()


def test_a_handler_that_interrupts_a_push_may_wait_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that waits for all operations does not wait for the one that its own thread is about to push."""
    array = mx.nd.zeros((2,))
    array.wait_to_read()
    check = check_call
    waited = threading.Event()

    def interrupting(status: int) -> None:
        monkeypatch.setattr(interface, "check_call", check)
        operations.wait_until_released()
        waited.set()
        check(status)

    monkeypatch.setattr(interface, "check_call", interrupting)
    operations.push(array, operations.Operation(lambda operation: operation.complete(), lambda: None))
    assert waited.is_set()
    array.wait_to_read()
    assert operations.wait_until_idle(PATIENCE_SECONDS)


def test_many_operations_from_many_threads() -> None:
    """Operations that several threads push and complete all end."""
    pending: queue.Queue[operations.Operation] = queue.Queue()
    count = 200

    def complete() -> None:
        for _ in range(count):
            pending.get(timeout=PATIENCE_SECONDS).complete()

    def push() -> None:
        array = mx.nd.zeros((8,))
        for _ in range(count):
            operations.push(array, operations.Operation(pending.put, lambda: None))
        array.wait_to_read()

    threads = [threading.Thread(target=target) for target in (complete, push) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    assert operations.wait_until_idle(PATIENCE_SECONDS)


def test_tests_use_the_threaded_engine() -> None:
    """These tests run with the threaded engine. With the NaiveEngine most of them would show nothing."""
    assert not ENGINE_IS_NAIVE


@pytest.mark.skipif(ENGINE_IS_NAIVE, reason="the NaiveEngine has no threads")
def test_a_thread_of_the_engine_keeps_its_state_in_python() -> None:
    """A new state for each call would take longer than the call. What a thread has stored is there in later calls."""
    stored, threads, seen = threading.local(), set(), queue.Queue[bool]()

    def run(operation: operations.Operation) -> None:
        me = threading.get_ident()
        seen.put(me not in threads or hasattr(stored, "mark"))
        threads.add(me)
        stored.mark = True
        operation.complete()

    arrays = [mx.nd.zeros((4,)) for _ in range(50)]
    for array in arrays:
        operations.push(array, operations.Operation(run, operations.ignore))
    mx.nd.waitall()
    assert all(seen.get(timeout=PATIENCE_SECONDS) for _ in arrays)
    assert len(threads) < len(arrays)
