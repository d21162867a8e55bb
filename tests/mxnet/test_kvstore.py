"""The store on MXNet's engine, with a core client that the test holds back."""

import contextlib
import gc
import sys
import threading
from typing import Any

import numpy as np
import pytest

from psum.client import AbortedError, Contribution, ElementType, Operation, PsumError
from psum.mxnet import BytePS, StageStatistics
from psum.mxnet.compat import MXNetError, mx
from psum.mxnet.engine import operations
from tests.mxnet.pending import failed_array, pending_array
from tests.polling import PATIENCE_SECONDS


def test_returns_before_the_sum_is_there(store: BytePS, client: Any) -> None:
    """A push-pull returns before the sum is there, and later readers of the array get the sum."""
    gradient = mx.nd.ones((2, 2))
    store.pushpull("w", gradient)
    weight = mx.nd.full((2, 2), 10.0) - 0.5 * gradient
    ticket = client.next_started()
    assert ticket.value.tolist() == [[1, 1], [1, 1]]
    ticket.finish(np.full((2, 2), 4.0))
    assert weight.asnumpy().tolist() == [[8, 8], [8, 8]]
    assert gradient.asnumpy().tolist() == [[4, 4], [4, 4]]


def test_returns_before_the_value_is_there(store: BytePS, client: Any) -> None:
    """A push-pull of a pending array returns, and starts when the array is computed."""
    gate = threading.Event()
    array = pending_array(gate)
    store.pushpull("w", array)
    (ticket,) = client.reserved
    assert not ticket.decided.is_set()
    gate.set()
    assert client.next_started() is ticket
    assert ticket.value.tolist() == [1, 1]
    ticket.finish()


def test_gradients_are_pushed_while_the_backward_pass_runs(store: BytePS, client: Any) -> None:
    """The last layer's gradient is sent before the first layer's is computed."""
    gate = threading.Event()
    slow = pending_array(gate)

    class SlowBackward(mx.autograd.Function):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x * 1

        def backward(self, dy: Any) -> Any:
            return dy * slow

    first, last = mx.nd.full((2,), 3.0), mx.nd.full((2,), 5.0)
    for weight in (first, last):
        weight.attach_grad()
    with mx.autograd.record():
        loss = SlowBackward()(first * 2) * last
    loss.backward()
    store.pushpull("first", first.grad, priority=0)
    store.pushpull("last", last.grad, priority=-1)
    ticket = client.next_started()
    assert (ticket.key, ticket.value.tolist()) == ("last", [6, 6])
    assert not client.reserved[0].decided.is_set()
    ticket.finish()
    assert last.grad.asnumpy().tolist() == [6, 6]
    gate.set()
    ticket = client.next_started()
    assert (ticket.key, ticket.value.tolist()) == ("first", [10, 10])
    ticket.finish()


def test_rounds_are_in_program_order(store: BytePS, client: Any) -> None:
    """The call fixes the round, even if the values become ready in another order."""
    gate = threading.Event()
    late = pending_array(gate, 3)
    store.pushpull("w", late)
    store.pushpull("w", mx.nd.zeros((3,)))
    assert client.next_started() is client.reserved[1]
    gate.set()
    assert client.next_started() is client.reserved[0]
    assert [t.round for t in client.reserved] == [0, 1]
    for ticket in client.reserved:
        ticket.finish()


def test_what_is_reserved(store: BytePS, client: Any) -> None:
    """Key, shape, type, operation and priority are passed on; 3 and '3' are one key."""
    client.peers = lambda ticket: None
    store.pushpull(3, mx.nd.zeros((2, 5), dtype="int8"), priority=-7)
    store.broadcast("3", mx.nd.zeros((2, 5), dtype="int8"))
    first, second = client.reserved
    assert (first.key, first.shape, first.element_type, first.operation, first.priority) == (
        "3",
        (2, 5),
        ElementType.INT8,
        Operation.SUM,
        -7,
    )
    assert (second.key, second.operation, second.priority) == ("3", Operation.BROADCAST, 0)


def test_value_is_untouched_with_an_out(store: BytePS, client: Any) -> None:
    """With out, the sum is there and the value is unchanged."""
    client.peers = lambda ticket: ticket.value * 2
    value, out = mx.nd.array([1.0, 2.0]), mx.nd.zeros((2,))
    store.pushpull("w", value, out)
    assert out.asnumpy().tolist() == [2, 4]
    assert value.asnumpy().tolist() == [1, 2]


def test_value_may_change_after_the_call(store: BytePS, client: Any) -> None:
    """Writes to the value after the call do not change the sum."""
    value, out = mx.nd.array([1.0, 2.0]), mx.nd.zeros((2,))
    store.pushpull("w", value, out)
    value[:] = 100.0
    ticket = client.next_started()
    assert ticket.value.tolist() == [1, 2]
    ticket.finish()


def test_lists(store: BytePS, client: Any) -> None:
    """The values of a list are added up first, and every out gets the sum, whatever their number."""
    client.peers = lambda ticket: ticket.value + 100
    values = [mx.nd.full((2,), float(n), ctx=mx.cpu(n)) for n in (1, 2, 3)]
    outs = [mx.nd.zeros((2,), ctx=mx.cpu(n)) for n in (0, 5)]
    store.pushpull("w", values, outs)
    assert [out.asnumpy().tolist() for out in outs] == [[106, 106]] * 2
    assert [value.asnumpy().tolist() for value in values] == [[1, 1], [2, 2], [3, 3]]
    store.pushpull("w", values)
    assert [value.asnumpy().tolist() for value in values] == [[106, 106]] * 3
    assert len(client.reserved) == 2


@pytest.mark.parametrize("aliased", ["same", "twice", "view", "detached", "halves"])
def test_arrays_that_share_memory(store: BytePS, client: Any, aliased: str) -> None:
    """One array in several places, and several views of one memory, neither hang nor get mixed up."""
    client.peers = lambda ticket: ticket.value * 10
    array = mx.nd.array([1.0, 2.0])
    both = mx.nd.array([1.0, 2.0, 7.0, 7.0])
    value, out, result, expected = {
        "same": (array, array, array, [10, 20]),
        "twice": ([array, array], [array, array], array, [20, 40]),
        "view": (array, array[:], array, [10, 20]),
        "detached": (array, [array.detach(), array], array, [10, 20]),
        "halves": (both[0:2], both[2:4], both, [1, 2, 10, 20]),
    }[aliased]
    store.pushpull("w", value, out)
    assert result.asnumpy().tolist() == expected


def test_while_recording(store: BytePS, client: Any) -> None:
    """Autograd does not record the copies, and allows them into arrays of its graph."""
    client.peers = lambda ticket: ticket.value * 10
    array = mx.nd.array([1.0, 2.0])
    array.attach_grad()
    with mx.autograd.record():
        square = array * array
        out = square * 1
        store.pushpull("w", [square, square], out)
        square.backward()
    assert out.asnumpy().tolist() == [20, 80]
    assert array.grad.asnumpy().tolist() == [2, 4]


def test_numpy_arrays(store: BytePS, client: Any) -> None:
    """Arrays of mx.np work like those of mx.nd, also without dimensions or elements."""
    client.peers = lambda ticket: ticket.value * 10
    with mx.util.np_shape(True), mx.util.np_array(True):
        for shape in ((), (0,), (0, 3), (1,), (2, 2)):
            value, out = mx.np.ones(shape), mx.np.zeros(shape)
            store.pushpull(str(shape), [value, value], [out, value])
            for result in (value, out):
                assert result.asnumpy().tolist() == np.full(shape, 20.0).tolist()


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("waited", [True, False])
def test_activation_of_a_convolution(store: BytePS, client: Any, in_place: bool, waited: bool) -> None:
    """An array in a layout of oneDNN's is summed like any other, and read correctly afterwards."""
    client.peers = lambda ticket: ticket.value * 10
    data = mx.nd.arange(2 * 4 * 16 * 16).reshape((2, 4, 16, 16)) % 17
    weight = mx.nd.arange(8 * 4 * 3 * 3).reshape((8, 4, 3, 3)) % 5
    activation, expected = (
        mx.nd.Convolution(data, weight, no_bias=True, kernel=(3, 3), num_filter=8) for _ in range(2)
    )
    if waited:
        activation.wait_to_read()
    out = activation if in_place else mx.nd.zeros(activation.shape)
    store.pushpull("a", activation, out)
    assert out.asnumpy().tolist() == (expected.asnumpy() * 10).tolist()
    if not in_place:
        assert activation.asnumpy().tolist() == expected.asnumpy().tolist()


def test_without_a_way_to_set_the_layout(client: Any) -> None:
    """Everything works through stages if nothing can be used in place."""
    client.peers = lambda ticket: ticket.value * 10
    store = BytePS(client, in_place=lambda context: False)
    data, weight = mx.nd.ones((2, 4, 16, 16)), mx.nd.ones((8, 4, 3, 3))
    activation = mx.nd.Convolution(data, weight, no_bias=True, kernel=(3, 3), num_filter=8)
    store.pushpull("a", activation)
    assert np.all(activation.asnumpy() == 360)
    assert store.stage_statistics == StageStatistics(allocated=1, in_use=0)


def test_stages_are_reused_from_step_to_step(device_store: BytePS, client: Any) -> None:
    """Arrays that cannot be used in place go through stages: one for each in flight, made in the first step only."""
    client.peers = lambda ticket: ticket.value * 10
    shapes = [(2, 3), (2, 3), (7,)]
    for step in range(1, 4):
        gradients = [[mx.nd.full(s, float(step), ctx=mx.cpu(d)) for d in (1, 2)] for s in shapes]
        for key, gradient in enumerate(gradients):
            device_store.pushpull(key, gradient, priority=-key)
        for gradient in gradients:
            for array in gradient:
                assert np.all(array.asnumpy() == 20 * step)
        assert device_store.stage_statistics.in_use == 0
        assert device_store.stage_statistics.allocated <= len(shapes)


def test_one_stage_per_operation_in_flight(device_store: BytePS, client: Any) -> None:
    """Operations that are under way at once have a stage each, which is idle again when the sum is there."""
    arrays = [mx.nd.zeros((4,), ctx=mx.cpu(1)) for _ in range(3)]
    for key, array in enumerate(arrays):
        device_store.pushpull(key, array)
    tickets = [client.next_started() for _ in arrays]
    assert device_store.stage_statistics == StageStatistics(allocated=3, in_use=3)
    for ticket in tickets:
        ticket.finish(np.full(4, float(ticket.key)))
    assert device_store.stage_statistics == StageStatistics(allocated=3, in_use=0)
    assert [array.asnumpy().tolist() for array in arrays] == [[0] * 4, [1] * 4, [2] * 4]


def test_stage_with_copies_pending(device_store: BytePS, client: Any) -> None:
    """A stage that is lent again while copies out of it are pending does not change these."""
    first, second = (mx.nd.full((100_000,), n, ctx=mx.cpu(1)) for n in (1.0, 2.0))
    outs = [mx.nd.zeros((100_000,), ctx=mx.cpu(n)) for n in range(1, 6)]
    for ticket_number, value in enumerate((first, second)):
        device_store.pushpull("w", value, outs if value is first else None)
        client.next_started().finish()
        assert device_store.stage_statistics.allocated == 1, ticket_number
    assert all(np.all(out.asnumpy() == 1) for out in outs)
    assert np.all(second.asnumpy() == 2)


def test_device_and_host_outs(device_store: BytePS, client: Any) -> None:
    """No stage is needed if one of the outs can be used in place."""
    client.peers = lambda ticket: ticket.value * 10
    outs = [mx.nd.zeros((2,), ctx=mx.cpu(1)), mx.nd.zeros((2,), ctx=mx.cpu(0))]
    device_store.pushpull("w", mx.nd.ones((2,), ctx=mx.cpu(1)), outs)
    assert [out.asnumpy().tolist() for out in outs] == [[10, 10]] * 2
    assert device_store.stage_statistics == StageStatistics(allocated=0, in_use=0)


def test_failed_sum_surfaces_where_out_is_read(store: BytePS, client: Any) -> None:
    """A reader of a failed sum gets an MXNetError with the same text, and nobody before that."""
    gradient = mx.nd.ones((2,))
    store.pushpull("w", gradient)
    weight = mx.nd.ones((2,)) - gradient
    client.next_started().finish(error=PsumError("rank 1 was lost: last heard 31 s ago"))
    with pytest.raises(MXNetError, match="rank 1 was lost: last heard 31 s ago"):
        weight.asnumpy()


def test_failed_sum_drops_its_stage(device_store: BytePS, client: Any) -> None:
    """A stage on which an operation failed is not used again, and the next operation succeeds."""
    array = mx.nd.ones((2,), ctx=mx.cpu(1))
    device_store.pushpull("w", array)
    client.next_started().finish(error=PsumError("no sum"))
    with pytest.raises(MXNetError, match="no sum"):
        array.wait_to_read()
    assert device_store.stage_statistics == StageStatistics(allocated=0, in_use=0)
    client.peers = lambda ticket: ticket.value * 10
    other = mx.nd.ones((2,), ctx=mx.cpu(1))
    device_store.pushpull("v", other)
    assert other.asnumpy().tolist() == [10, 10]


@pytest.mark.parametrize("through_stage", [False, True])
@pytest.mark.parametrize("with_out", [False, True])
def test_failed_value_is_told_to_the_peers(client: Any, with_out: bool, through_stage: bool) -> None:
    """If the computation of a value fails, the operation is aborted, and the reader gets the value's error."""
    store = BytePS(client, in_place=lambda context: not through_stage)
    array = failed_array()
    out = mx.nd.zeros((2,)) if with_out else array
    store.pushpull("w", array, out)
    (ticket,) = client.reserved
    assert ticket.decided.wait(PATIENCE_SECONDS)
    assert "failed there" in ticket.reason
    with pytest.raises(MXNetError, match="division by zero"):
        out.wait_to_read()
    assert operations.wait_until_idle(PATIENCE_SECONDS)
    assert store.stage_statistics == StageStatistics(allocated=0, in_use=0)


def test_arrays_are_not_kept(device_store: BytePS, client: Any) -> None:
    """An operation no longer keeps its arrays when it has ended, without the garbage collector."""
    arrays = [mx.nd.ones((2,)), mx.nd.ones((2,), ctx=mx.cpu(1)), failed_array()]
    before = [sys.getrefcount(array) for array in arrays]
    gc.collect()
    gc.disable()
    try:
        for key, array in enumerate(arrays):
            device_store.pushpull(key, array)
        del array
        assert all(sys.getrefcount(array) > count for array, count in zip(arrays[:2], before, strict=False))
        client.next_started().finish()
        client.next_started().finish(error=PsumError("no sum"))
        del client.reserved[:]
        assert operations.wait_until_idle(PATIENCE_SECONDS)
        assert [sys.getrefcount(array) for array in arrays] == before
    finally:
        gc.enable()
    for array in arrays:
        with contextlib.suppress(MXNetError):
            array.wait_to_read()


def test_refused_operation(store: BytePS, client: Any) -> None:
    """If the key or the job has failed before, the call raises an MXNetError with that text and cause."""
    client.refusal = AbortedError("rank 1 could not contribute to key 'w'")
    with pytest.raises(MXNetError, match="rank 1 could not contribute") as raised:
        store.pushpull("w", mx.nd.zeros((2,)))
    assert raised.value.__cause__ is client.refusal


def test_push_refused_by_the_engine(store: BytePS, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the engine refuses the operation, the call raises, and the other ranks get the reason."""

    def refuse(*_: Any, **__: Any) -> None:
        raise MXNetError("engine is ending")

    monkeypatch.setattr(operations, "push", refuse)
    with pytest.raises(MXNetError, match="engine is ending"):
        store.pushpull("w", mx.nd.zeros((2,)))
    (ticket,) = client.reserved
    assert "engine is ending" in ticket.reason


def test_stages_of_elastic_jobs_are_scaled(client: Any) -> None:
    """Arrays that go through a stage get the scaled sum, and so do all copies on devices."""
    client.elastic = True
    store = BytePS(client, in_place=lambda context: False)
    copies = [mx.nd.ones((2,), ctx=mx.cpu(number)) for number in range(2)]
    store.pushpull("w", copies)
    ticket = client.next_started()
    ticket.contributions = [Contribution(1, 2, 1)]
    ticket.finish(np.array([6.0, 3.0]))
    assert [copy.asnumpy().tolist() for copy in copies] == [[6, 6]] * 2
