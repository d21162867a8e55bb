"""Broadcasts on MXNet's engine, with a core client that the test holds back."""

import threading
from typing import Any

import numpy as np
import pytest

from psum.client import Operation, PsumError
from psum.mxnet import BytePS
from psum.mxnet.compat import MXNetError, mx
from tests.mxnet.pending import failed_array
from tests.polling import PATIENCE_SECONDS


def test_broadcast_waits(store: BytePS, client: Any) -> None:
    """A broadcast returns when the value is there."""
    out = mx.nd.zeros((2,))
    thread = threading.Thread(target=store.broadcast, args=("w", mx.nd.ones((2,)), out))
    thread.start()
    ticket = client.next_started()
    assert thread.is_alive()
    ticket.finish()
    thread.join(PATIENCE_SECONDS)
    assert out.asnumpy().tolist() == [1, 1]


@pytest.mark.parametrize("contexts", [[0, 1], [2, 1]])
def test_broadcast_of_a_trainer_does_not_wait(device_store: BytePS, client: Any, contexts: list[int]) -> None:
    """A Trainer's broadcast returns at once, through stages too. Readers of the outs get rank 0's value, or the first
    one the error."""
    store = device_store.labelled({Operation.BROADCAST: {0: "weight"}, Operation.SUM: {}})
    client.rank = 1
    outs = [mx.nd.zeros((2,), ctx=mx.cpu(n)) for n in contexts]
    for value in (3.0, 4.0):
        store.broadcast(0, outs[0], outs)
        ticket = client.next_started()
        assert (ticket.label, ticket.value) == ("weight", None)
        doubled = [out * 2 for out in outs]
        ticket.finish(np.full(2, value))
        assert [array.asnumpy().tolist() for array in doubled] == [[2 * value] * 2] * 2
    store.broadcast(0, outs[0], outs)
    client.next_started().finish(error=PsumError("rank 0 was lost"))
    with pytest.raises(MXNetError, match="rank 0 was lost"):
        outs[0].asnumpy()


@pytest.mark.parametrize("contexts", [[0], [1], [0, 1, 2], [2, 1]])
def test_broadcast_on_other_ranks(device_store: BytePS, client: Any, contexts: list[int]) -> None:
    """On other ranks a broadcast contributes nothing, leaves the value alone, and fills every out on any device."""
    client.rank = 1
    client.peers = lambda ticket: np.array([3.0, 4.0])
    value = mx.nd.full((2,), float("nan"))
    outs = [mx.nd.zeros((2,), ctx=mx.cpu(n)) for n in contexts]
    device_store.broadcast("w", value, outs)
    assert [out.asnumpy().tolist() for out in outs] == [[3, 4]] * len(contexts)
    assert np.isnan(value.asnumpy()).all()
    assert client.reserved[0].value is None


def test_broadcast_without_out(store: BytePS, client: Any) -> None:
    """Without out, the value of rank 0 is stored in value."""
    client.rank = 1
    client.peers = lambda ticket: np.array([3.0, 4.0])
    value = mx.nd.full((2,), float("nan"))
    store.broadcast("w", value)
    assert value.asnumpy().tolist() == [3, 4]


def test_failed_broadcast(store: BytePS, client: Any) -> None:
    """A broadcast that fails raises."""
    client.failure = PsumError("rank 0 was lost")
    with pytest.raises(MXNetError, match="rank 0 was lost"):
        store.broadcast("w", mx.nd.zeros((2,)), [mx.nd.zeros((2,)) for _ in range(2)])


def test_broadcast_of_a_failed_value(store: BytePS, client: Any) -> None:
    """A broadcast of a value that could not be computed raises the value's error, and the other ranks get the
    reason."""
    with pytest.raises(MXNetError, match="division by zero"):
        store.broadcast("w", failed_array(), mx.nd.zeros((2,)))
    assert client.reserved[0].reason is not None


@pytest.mark.parametrize("contexts", [[0], [1], [0, 1, 2], [2, 1]])
def test_a_receiver_of_a_broadcast_in_an_elastic_job_has_a_value_to_send(
    device_store: BytePS, client: Any, contexts: list[int]
) -> None:
    """If rank 0 is lost, this rank's value may be sent: it is in the target before the operation starts."""
    client.elastic, client.rank = True, 1
    outs = [mx.nd.zeros((2,), ctx=mx.cpu(n)) for n in contexts]
    thread = threading.Thread(target=device_store.broadcast, args=("w", mx.nd.array([5.0, 6.0]), outs))
    thread.start()
    ticket = client.next_started()
    assert ticket.value is None
    assert ticket.stand_in.tolist() == [5, 6]
    ticket.finish(np.array([3.0, 4.0]))
    thread.join(PATIENCE_SECONDS)
    assert [out.asnumpy().tolist() for out in outs] == [[3, 4]] * len(contexts)
