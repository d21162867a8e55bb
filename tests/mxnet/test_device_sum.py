"""Sums of single arrays of a device, in place, with a device in host memory whose copies are late."""

import ctypes
import gc
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from psum.client import AbortedError, Contribution, PsumError
from psum.mxnet import BytePS, StageStatistics
from psum.mxnet.compat import MXNetError, mx
from psum.mxnet.engine import operations
from psum.mxnet.staging.device_pipeline import DevicePipeline
from psum.mxnet.staging.host_memory import worker
from tests.mxnet.pending import hold
from tests.polling import wait_until

PATIENCE_SECONDS = 30.0


class LateCopies:
    """Copies when it is waited for.

    Attributes:
        count: How many copies there were, in each direction.
        failure: If set, waiting raises it instead.
        devices: The numbers of the devices that were used.
    """

    def __init__(self) -> None:
        self._queued: list[tuple[int, int, int]] = []
        self.count = {"down": 0, "up": 0}
        self.failure: Exception | None = None
        self.devices: set[int] = set()

    def of(self, device: int) -> "LateCopies":
        self.devices.add(device)
        return self

    def begin(self) -> None:
        pass

    def to_host(self, target: int, source: int, size: int, *, pinned: bool) -> None:
        self.count["down"] += 1
        self._queued.append((target, source, size))

    def to_device(self, target: int, source: int, size: int, *, pinned: bool) -> None:
        self.count["up"] += 1
        self._queued.append((target, source, size))

    def wait(self) -> None:
        queued, self._queued = self._queued, []
        if self.failure is not None:
            raise self.failure
        for target, source, size in queued:
            ctypes.memmove(target, source, size)


@pytest.fixture
def copies() -> LateCopies:
    return LateCopies()


@pytest.fixture
def store(client: Any, copies: LateCopies) -> Iterator[BytePS]:
    """A store for which cpu(0) is the host and all other contexts are devices."""
    pipeline = DevicePipeline(copies.of)
    yield BytePS(client, in_place=lambda context: bool(context == mx.cpu(0)), pipeline_of=lambda context: pipeline)
    assert operations.wait_until_idle(PATIENCE_SECONDS)


def on_device(*values: float) -> Any:
    return mx.nd.array(values, ctx=mx.cpu(1), dtype="float32")


def fail(operation: operations.Operation) -> None:
    """Ends an operation with an error of MXNet's."""
    operation.complete("division by zero")


def test_value_and_sum(store: BytePS, client: Any, copies: LateCopies) -> None:
    """The value is copied once to the host and the sum once back, between what was queued before and after."""
    array = on_device(1, 2)
    for expected in (30.0, 310.0):
        array += 1
        store.pushpull("w", array)
        after = array * 10 if expected == 30.0 else array + 0
        ticket = client.next_started()
        ticket.finish(ticket.value + 1 if expected == 30.0 else ticket.value + 300)
        assert after.asnumpy()[0] == (30.0 if expected == 30.0 else 304.0)
    assert copies.count == {"down": 2, "up": 2}
    assert copies.devices == {1}


def test_the_call_returns_before_the_value_is_there(store: BytePS, client: Any) -> None:
    """The call fixes the round and returns, also while the array is pending."""
    gate = threading.Event()
    array = on_device(1, 1)

    hold(array, gate)
    store.pushpull("w", array)
    (ticket,) = client.reserved
    assert not ticket.decided.is_set()
    gate.set()
    assert client.next_started() is ticket
    ticket.finish()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int8", "int32", "int64"])
def test_bits(store: BytePS, client: Any, dtype: str) -> None:
    """Values and sums arrive bit for bit, in every type."""
    value = np.arange(100).reshape(4, 25).astype(dtype)
    array = mx.nd.array(value, ctx=mx.cpu(1), dtype=dtype)
    store.pushpull(dtype, array)
    ticket = client.next_started()
    assert ticket.value.tobytes() == value.tobytes()
    ticket.finish(value[::-1])
    assert array.asnumpy().tobytes() == value[::-1].tobytes()


def test_a_view(store: BytePS, client: Any) -> None:
    """A slice of an array is summed, and the rest of the array is not touched."""
    array = on_device(0, 1, 2, 3)
    part = array[1:3]
    store.pushpull("w", part)
    ticket = client.next_started()
    assert ticket.value.tolist() == [1, 2]
    ticket.finish([10, 20])
    assert array.asnumpy().tolist() == [0, 10, 20, 3]


def test_rounds_take_turns(store: BytePS, client: Any) -> None:
    """Sums of one key run one after the other and need one stage, also in several arrays that are ready at once."""
    gate = threading.Event()
    arrays = [on_device(number) for number in range(4)]
    hold(arrays[0], gate)
    out = on_device(0)
    for array in arrays:
        store.pushpull("w", array)
    store.pushpull("w", on_device(4), out)
    arrays.append(mx.nd.array([5.0]))
    store.pushpull("w", arrays[-1])
    gate.set()
    for number in range(6):
        ticket = client.next_started()
        assert ticket is client.reserved[number]
        assert ticket.value.tolist() == [number]
        assert client.started.empty()
        ticket.finish(ticket.value * 10)
    assert [array.asscalar() for array in arrays] == [0, 10, 20, 30, 50]
    assert out.asscalar() == 40
    # MXNet's own copies need one too.
    assert store.stage_statistics.allocated <= 2


def test_rounds_go_on_after_a_value_that_fails(store: BytePS, client: Any) -> None:
    """A round whose value fails does not hold up the next one, which psum fails if it must."""
    array, other = on_device(1), on_device(2)
    operations.push(array, operations.Operation(fail, operations.ignore))
    store.pushpull("w", array)
    store.pushpull("w", other)
    ticket = client.next_started()
    assert ticket is client.reserved[1]
    ticket.finish(error=AbortedError("rank 0 aborted"))
    with pytest.raises(MXNetError, match="division by zero"):
        array.wait_to_read()
    with pytest.raises(MXNetError, match="rank 0 aborted"):
        other.wait_to_read()


def test_stages_that_mxnet_still_copies_from(store: BytePS, client: Any) -> None:
    """A stage whose content MXNet has yet to copy out is not overwritten."""
    gate = threading.Event()
    late, array = on_device(0, 0), on_device(5, 6)
    hold(late, gate)
    store.pushpull("a", on_device(1, 2), late)
    client.next_started().finish([3, 4])
    wait_until(lambda: store.stage_statistics == StageStatistics(allocated=1, in_use=0))
    store.pushpull("b", array)
    wait_until(lambda: store.stage_statistics == StageStatistics(allocated=1, in_use=1))
    moved = threading.Event()
    worker.do(moved.set)
    assert moved.wait(PATIENCE_SECONDS)
    gate.set()
    ticket = client.next_started()
    assert ticket.value.tolist() == [5, 6]
    ticket.finish([50, 60])
    assert late.asnumpy().tolist() == [3, 4]
    assert array.asnumpy().tolist() == [50, 60]


def test_a_sum_that_fails(store: BytePS, client: Any) -> None:
    """Readers of the array get the error of the sum, and its stage is not used again."""
    array = on_device(1)
    store.pushpull("w", array)
    client.next_started().finish(error=AbortedError("rank 1 aborted"))
    with pytest.raises(MXNetError, match="rank 1 aborted"):
        array.wait_to_read()
    mx.nd.waitall()
    assert store.stage_statistics.allocated == 0


def test_a_value_that_fails(store: BytePS, client: Any) -> None:
    """If the value cannot be computed, the operation is aborted, and readers get MXNet's error."""
    array = on_device(1)
    operations.push(array, operations.Operation(fail, operations.ignore))
    store.pushpull("w", array)
    (ticket,) = client.reserved
    assert ticket.decided.wait(PATIENCE_SECONDS)
    assert "failed there" in ticket.reason
    with pytest.raises(MXNetError, match="division by zero"):
        array.wait_to_read()


@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_copy_that_fails(store: BytePS, client: Any, copies: LateCopies, direction: str) -> None:
    """If the device fails, readers get its error. Other ranks hear of it if the value could not be read."""
    array = on_device(1)
    if direction == "down":
        copies.failure = RuntimeError("illegal memory access")
    store.pushpull("w", array)
    (ticket,) = client.reserved
    assert ticket.decided.wait(PATIENCE_SECONDS)
    if direction == "up":
        copies.failure = RuntimeError("illegal memory access")
        client.next_started().finish()
    else:
        assert "illegal memory access" in ticket.reason
    with pytest.raises(MXNetError, match=r"gpu\(1\) and host memory failed: illegal memory access"):
        array.wait_to_read()


def test_fewer_ranks(store: BytePS, client: Any) -> None:
    """In an elastic job, a sum to which fewer ranks contributed is scaled before it goes to the device."""
    client.elastic = True
    array = on_device(1, 1)
    store.pushpull("w", array)
    ticket = client.next_started()
    ticket.contributions = [Contribution(0, 1, 1), Contribution(1, 2, 2)]
    ticket.finish([3, 3])
    assert array.asnumpy().tolist() == [6, 3]


def test_arrays_are_released(store: BytePS, client: Any) -> None:
    """Nothing keeps the array after its sum, not even until the garbage collector runs."""
    array = on_device(1)
    gc.collect()
    gc.disable()
    try:
        store.pushpull("w", array)
        client.next_started().finish()
        array.wait_to_read()
        assert operations.wait_until_idle(PATIENCE_SECONDS)
        operation_count = sum(isinstance(each, operations.Operation) for each in gc.get_objects())
    finally:
        gc.enable()
    assert operation_count == 0


def test_lists_out_and_broadcasts_go_another_way(store: BytePS, client: Any, copies: LateCopies) -> None:
    """What is not one array in place is copied by MXNet, with the same results."""
    client.peers = lambda ticket: ticket.value
    array, out = on_device(1, 2), on_device(0, 0)
    store.pushpull("a", array, out)
    store.pushpull("b", [array, out], [array, out])
    assert out.asnumpy().tolist() == [2, 4]
    assert copies.count == {"down": 0, "up": 0}
    store.pushpull("c", [array], out=[array])
    assert array.asnumpy().tolist() == [2, 4]
    assert copies.count == {"down": 1, "up": 1}


def test_refused(store: BytePS, client: Any) -> None:
    """If the key has failed, the call raises, also for an array that is known."""
    client.peers = lambda ticket: ticket.value
    array = on_device(1)
    store.pushpull("w", array)
    client.refusal = PsumError("the job is over")
    with pytest.raises(MXNetError, match="the job is over"):
        store.pushpull("w", array)


def test_another_array_under_the_same_key(store: BytePS, client: Any, copies: LateCopies) -> None:
    """An array that takes the place of a known one is looked at again: a parameter that was moved, or a list."""
    client.peers = lambda ticket: ticket.value * 2
    arrays = [on_device(1), mx.nd.array([1.0]), on_device(1)]
    for array in arrays:
        store.pushpull(7, array)
        store.pushpull(7, array)
    assert [array.asscalar() for array in arrays] == [4, 4, 4]
    assert copies.count == {"down": 4, "up": 4}
    # The handle of an array in host memory comes into the hands of what was known as a device's.
    arrays[2].handle, arrays[1].handle = arrays[1].handle, arrays[2].handle
    store.pushpull(7, arrays[2])
    assert arrays[2].asscalar() == 8
    assert copies.count == {"down": 4, "up": 4}
