"""Stores that send all arrays through stages."""

import contextlib
import gc
import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from psum.client import ElementType, PsumError
from psum.mxnet import BytePS, StageStatistics
from psum.mxnet.arrays import copies
from psum.mxnet.arrays.inspection import context_of
from psum.mxnet.arrays.memory import flat_bytes
from psum.mxnet.compat import MXNetError, mx
from psum.mxnet.engine import operations
from psum.mxnet.staging import stages as _stages
from psum.mxnet.staging.stages import StagePool
from tests.mxnet.pending import failed_array, pending_array
from tests.polling import PATIENCE_SECONDS, wait_until


def never(context: Any) -> bool:
    """Sends all arrays through stages."""
    return False


@pytest.fixture
def store(client: Any) -> BytePS:
    """A store that sends all arrays through stages, of a client that the test holds back."""
    return BytePS(client, in_place=never)


def test_steps_queued_ahead_take_no_more_stages(store: BytePS, client: Any) -> None:
    """Thirty steps that are queued without waiting need one stage for each key, and all sums are right."""
    values = [mx.nd.full((1000,), float(key)) for key in range(3)]
    outs = [[mx.nd.zeros((1000,)) for _ in range(30)] for _ in values]
    for step, key in itertools.product(range(30), range(3)):
        store.pushpull(key, values[key] + step, outs[key][step])
    assert store.stage_statistics == StageStatistics(allocated=3, in_use=3)
    while any(not ticket.decided.is_set() for ticket in client.reserved) or not client.started.empty():
        ticket = client.next_started()
        ticket.finish(ticket.value * 10)
    for step, key in itertools.product(range(30), range(3)):
        assert set(outs[key][step].asnumpy()) == {10.0 * (key + step)}
    assert store.stage_statistics == StageStatistics(allocated=3, in_use=0)


def test_keys_that_are_used_once(store: BytePS, client: Any) -> None:
    """Keys that are used once, such as temporaries and broadcasts, need only as many stages as are under way at
    once."""
    client.peers = lambda ticket: ticket.value
    for number in range(50):
        store.broadcast(f"b{number}", mx.nd.ones((4,)))
        array = mx.nd.ones((4,))
        store.pushpull(f"t{number}", array)
        array.wait_to_read()
        assert operations.wait_until_idle(PATIENCE_SECONDS)
    assert store.stage_statistics == StageStatistics(allocated=1, in_use=0)


def test_stores_that_come_and_go(client: Any) -> None:
    """A new store uses the stages of an old one. Two stores that use one key at once have two stages."""
    client.peers = lambda ticket: ticket.value
    for _ in range(20):
        array = mx.nd.ones((4,))
        store = BytePS(client, in_place=never)
        store.pushpull("k", array)
        del store
        array.wait_to_read()
        assert operations.wait_until_idle(PATIENCE_SECONDS)
    stores = [BytePS(client, in_place=never) for _ in range(2)]
    assert stores[0].stage_statistics == StageStatistics(allocated=1, in_use=0)


def test_calls_from_several_threads(store: BytePS, client: Any) -> None:
    """Threads that use one key at once do not deadlock: the engine gets the operations in the order of the rounds."""
    client.peers = lambda ticket: ticket.value * 10
    got: list[Any] = []

    def call(number: int) -> None:
        for step in range(40):
            array = mx.nd.full((3,), float(number * 100 + step))
            store.pushpull("k", array)
            got.append((number * 100 + step, array))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert [array.asnumpy().tolist() for _, array in got] == [[10.0 * value] * 3 for value, _ in got]
    rounds = [ticket.round for ticket in client.reserved]
    assert rounds == sorted(rounds)
    assert store.stage_statistics.allocated == 1


def test_the_engine_gets_the_rounds_in_order(store: BytePS, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No operation on a key is queued between the reservation of another one and its queueing."""
    copying, go_on = threading.Event(), threading.Event()
    copy = copies.copy

    def slow(source: Any, target: Any) -> None:
        if threading.current_thread().name == "slow":
            copying.set()
            go_on.wait(PATIENCE_SECONDS)
        copy(source, target)

    monkeypatch.setattr(copies, "copy", slow)
    first, second = mx.nd.full((2,), 1.0), mx.nd.full((2,), 2.0)
    threads = [
        threading.Thread(target=store.pushpull, args=("k", a), name=n) for a, n in ((first, "slow"), (second, ""))
    ]
    threads[0].start()
    assert copying.wait(PATIENCE_SECONDS)
    threads[1].start()
    # It cannot go on, which nothing announces. If it had gone on, it would have been started by now.
    assert not client.started.qsize()
    threads[1].join(0.2)
    go_on.set()
    for number in range(2):
        ticket = client.next_started()
        assert ticket.round == number
        ticket.finish(ticket.value * 10)
    assert (first.asnumpy().tolist(), second.asnumpy().tolist()) == ([10, 10], [20, 20])
    for thread in threads:
        thread.join(PATIENCE_SECONDS)


def test_each_round_behind_a_failed_one_has_an_error_of_its_own(store: BytePS, client: Any) -> None:
    """The reader of one round's error still gets the error of the next round, in whatever order they are read.

    MXNet raises an error at one reader only. A round that shared the error of the one before it on the same stage would
    be read without one, with the content of before.
    """
    outs = [mx.nd.full((2,), -1.0) for _ in range(4)]
    for number, out in enumerate(outs):
        store.pushpull("k", mx.nd.full((2,), float(number)), out)
    client.next_started().finish([5.0, 5.0])
    client.next_started().finish(error=PsumError("rank 1 was lost"))
    assert outs[0].asnumpy().tolist() == [5, 5]
    with pytest.raises(MXNetError, match=r"^MXNetError: rank 1 was lost$"):
        outs[1].wait_to_read()
    for out in outs[2:]:
        with pytest.raises(MXNetError, match="an earlier round of key 'k' failed on this rank: rank 1 was lost"):
            out.wait_to_read()
    assert operations.wait_until_idle(PATIENCE_SECONDS)
    assert [ticket.reason for ticket in client.reserved[2:]] == [
        "an MXNet operation that computes its value failed there"
    ] * 2
    assert store.stage_statistics == StageStatistics(allocated=0, in_use=0)


def test_rounds_behind_a_value_that_failed(store: BytePS, client: Any) -> None:
    """The reader of a failed value gets its error. Later rounds have errors of their own, and earlier rounds have
    sums."""
    values = [mx.nd.ones((2,)), failed_array(), mx.nd.ones((2,)), failed_array()]
    for value in values:
        store.pushpull("k", value)
    client.next_started().finish([5.0, 5.0])
    assert values[0].asnumpy().tolist() == [5, 5]
    with pytest.raises(MXNetError, match="division by zero"):
        values[1].wait_to_read()
    with pytest.raises(MXNetError, match="an earlier round of key 'k' failed on this rank: an MXNet operation"):
        values[2].wait_to_read()
    with pytest.raises(MXNetError):
        values[3].wait_to_read()
    assert operations.wait_until_idle(PATIENCE_SECONDS)
    assert [ticket.reason is None for ticket in client.reserved] == [True, False, False, False]
    assert store.stage_statistics == StageStatistics(allocated=0, in_use=0)
    # The last array had two errors, and its reader got one of them.
    with contextlib.suppress(MXNetError):
        mx.nd.waitall()


def test_what_failed_stays_as_it_is(store: BytePS, client: Any) -> None:
    """Later rounds do not overwrite a failed value, which an aggregator may still sum for the other ranks.

    Not even by one whose value comes after the error was read, when MXNet would take the stage for a good one.
    """
    gate = threading.Event()
    outs = [mx.nd.zeros((2,)) for _ in range(3)]
    for value, out in zip((mx.nd.full((2,), 7.0), pending_array(gate), mx.nd.ones((2,))), outs, strict=True):
        store.pushpull("k", value, out)
    (stage,) = store._stages._lent.values()
    ticket = client.next_started()
    client.failure = PsumError("no sum")
    ticket.finish(error=client.failure)
    with pytest.raises(MXNetError, match="no sum"):
        outs[0].wait_to_read()
    gate.set()
    for out in outs[1:]:
        with pytest.raises(MXNetError, match="no sum"):
            out.wait_to_read()
    assert operations.wait_until_idle(PATIENCE_SECONDS)
    assert np.frombuffer(flat_bytes(stage.array, 8), np.float32).tolist() == [7, 7]


def test_a_first_use_does_not_hold_up_the_caller(client: Any) -> None:
    """Shared memory may take long: the call returns, other keys with a stage go on, and the sum comes later."""
    reserving, reserved = threading.Event(), threading.Event()

    def allocate(size: int) -> None:
        if size == 4000:
            reserving.set()
            assert reserved.wait(PATIENCE_SECONDS)

    client.allocate = allocate
    store = BytePS(client, in_place=never)
    client.peers = lambda ticket: ticket.value * 10
    small = mx.nd.ones((10,))
    store.pushpull("small", small)
    small.wait_to_read()
    large = mx.nd.ones((1000,))
    for _ in range(3):
        store.pushpull("large", large)
    assert reserving.wait(PATIENCE_SECONDS)
    store.pushpull("small", small)
    assert set(small.asnumpy()) == {100}
    assert not client.reserved[1].decided.is_set()
    reserved.set()
    assert set(large.asnumpy()) == {1000}


def test_memory_that_cannot_be_prepared(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Memory that cannot be prepared is used as it is, and the log has the reason."""

    def allocate(size: int) -> None:
        raise RuntimeError("a bug")

    client.allocate = allocate
    client.peers = lambda ticket: ticket.value * 10
    store = BytePS(client, in_place=never)
    array = mx.nd.ones((10,))
    store.pushpull("k", array)
    assert set(array.asnumpy()) == {10}
    wait_until(lambda: "a bug" in caplog.text)


@pytest.mark.parametrize("element_type", ElementType)
def test_element_types(store: BytePS, client: Any, element_type: ElementType) -> None:
    """Elements of all types go through a stage as they are, alone and added up."""
    client.peers = lambda ticket: ticket.value
    dtype = np.dtype([("bfloat16", np.uint16)]) if element_type is ElementType.BFLOAT16 else element_type.label
    value = mx.nd.array([[1, 2, 3], [4, 5, -6 if element_type is not ElementType.UINT8 else 250]]).astype(dtype)
    outs = [mx.nd.zeros((2, 3), dtype=dtype) for _ in range(2)]
    store.pushpull("one", value, outs[0])
    store.pushpull("two", [value, value], outs[1])
    one, two = (out.astype("float32").asnumpy() for out in outs)
    assert one.tolist() == value.astype("float32").asnumpy().tolist()
    assert two.tolist() == (2 * one % 256 if element_type is ElementType.UINT8 else 2 * one).tolist()


@pytest.mark.parametrize("element_type", ElementType)
def test_what_a_gpu_does_not_add_up(monkeypatch: pytest.MonkeyPatch, element_type: ElementType) -> None:
    """MXNet cannot add int8 and bfloat16 on a GPU: these are copied to the host first. Other types are added up
    before."""

    class Gpu:
        """Takes the place of cpu(1)."""

        device_type = "gpu"

        def __eq__(self, other: object) -> bool:
            return other is self or other == mx.cpu(1)

        __hash__ = None  # type: ignore[assignment]

    gpu, real = Gpu(), context_of
    monkeypatch.setattr(copies, "context_of", lambda array: gpu if real(array) == mx.cpu(1) else real(array))
    added_on = []
    add_n = mx.nd.add_n

    def observed(*addends: Any, **arguments: Any) -> Any:
        added_on.append({str(real(addend)) for addend in addends})
        return add_n(*addends, **arguments)

    monkeypatch.setattr(mx.nd, "add_n", observed)
    dtype = np.dtype([("bfloat16", np.uint16)]) if element_type is ElementType.BFLOAT16 else element_type.label
    addends = [mx.nd.full((3,), n, dtype="float32").astype(dtype).copyto(mx.cpu(1)) for n in (1, 2, 3)]
    target = mx.nd.zeros((3,), dtype="float32").astype(dtype)
    copies.add(addends, target, element_type)
    on_the_host = element_type in (ElementType.INT8, ElementType.BFLOAT16)
    assert added_on == [{"cpu(0)" if on_the_host else "cpu(1)"}]
    assert target.astype("float32").asnumpy().tolist() == [6, 6, 6]


def test_foreign_layouts(store: BytePS, client: Any) -> None:
    """An array in a layout of oneDNN's goes through a stage in the plain layout, alone and added up."""
    client.peers = lambda ticket: ticket.value
    data, weight = mx.nd.arange(2 * 4 * 8 * 8).reshape((2, 4, 8, 8)) % 5, mx.nd.ones((8, 4, 3, 3))
    for value in ("one", "two"):
        activation, expected = (
            mx.nd.Convolution(data, weight, no_bias=True, kernel=(3, 3), num_filter=8) for _ in range(2)
        )
        out = mx.nd.zeros(expected.shape)
        store.pushpull(value, activation if value == "one" else [activation, activation], out)
        assert out.asnumpy().tolist() == (expected * (1 if value == "one" else 2)).asnumpy().tolist()


def test_fork_and_exit(run_python: Callable[..., Any], aggregator: str) -> None:
    """A process can fork and end at any moment, with rounds queued at stages that are being made."""
    program = """
import os
import psum.mxnet
from psum.mxnet.compat import mx
store = psum.mxnet.BytePS(in_place=lambda context: False)
arrays = [mx.nd.ones((100_000,)) for _ in range(4)]
for step in range(8):
    for key, array in enumerate(arrays):
        store.pushpull(key, array)
    if step == 2:
        if (child := os.fork()) == 0:
            os._exit(0)
        assert os.waitpid(child, 0) == (child, 0)
"""
    job = {"PSUM_AGGREGATORS": aggregator, "PSUM_NUM_WORKERS": "2"}
    runs = [run_python(program, PSUM_RANK=rank, **job) for rank in "01"]
    for run in runs:
        run.check()
        assert "psum" not in run.errors
        assert "Error" not in run.errors


def test_a_client_that_is_gone_leaves_nothing(client: Any) -> None:
    """A client's stages are freed when the next client has a pool, and not before the copies out of them are done."""
    client.peers = lambda ticket: ticket.value
    gate = threading.Event()
    out = pending_array(gate)
    BytePS(client, in_place=never).pushpull("k", mx.nd.full((2,), 5.0), out)
    pool = StagePool.of(client)
    (ticket,) = client.reserved
    assert ticket.decided.wait(PATIENCE_SECONDS)
    memory = weakref.ref(pool._all[0].memory)
    del pool
    _stages._pools._made.clear()
    gc.collect()
    assert memory() is not None
    other = StagePool.of(client)
    gc.collect()
    assert memory() is not None
    gate.set()
    assert out.asnumpy().tolist() == [5, 5]
    # What ran the copies may be part of a cycle, which only the collector frees.
    wait_until(lambda: gc.collect() >= 0 and memory() is None)
    assert other.statistics() == StageStatistics(allocated=0, in_use=0)
