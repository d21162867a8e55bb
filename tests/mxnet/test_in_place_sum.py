"""Sums of one array in host memory, in place."""

from typing import Any

import numpy as np
import pytest

from psum.client import Contribution
from psum.mxnet import BytePS, in_place_sum, kvstore
from psum.mxnet.compat import mx
from psum.mxnet.engine import operations
from psum.mxnet.in_place_sum import InPlaceSum
from tests.polling import PATIENCE_SECONDS


def test_one_object_serves_all_sums_of_a_key(store: BytePS, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a sum that begins before the last one of its key has ended needs another one."""
    made: list[InPlaceSum] = []

    class Counted(InPlaceSum):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(kvstore, "InPlaceSum", Counted)
    arrays = [mx.nd.ones((2,)) for _ in range(5)]
    for step in range(3):
        for key, array in enumerate(arrays):
            store.pushpull(key, array)
        for _ in arrays:
            ticket = client.next_started()
            assert ticket.value.tolist() == [2.0**step] * 2
            ticket.finish(ticket.value * 2)
        assert operations.wait_until_idle(PATIENCE_SECONDS)
    assert len(made) == len(arrays)
    for _ in range(3):
        store.pushpull(0, arrays[0])
    for step in range(3, 6):
        ticket = client.next_started()
        assert ticket.value.tolist() == [2.0**step] * 2
        ticket.finish(ticket.value * 2)
    assert arrays[0].asnumpy().tolist() == [2.0**6] * 2
    assert len(made) == len(arrays) + 2


@pytest.mark.parametrize("at_once", [True, False])
def test_a_known_array_in_another_layout(
    store: BytePS, client: Any, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """A later result of oneDNN's in the same array, in a layout of its own, is summed in the plain layout."""
    monkeypatch.setattr(in_place_sum, "layout_can_be_set_at_once", lambda: at_once)
    client.peers = lambda ticket: ticket.value * 10
    out = mx.nd.zeros((2, 8, 14, 14))
    data, weight = mx.nd.arange(2 * 4 * 16 * 16).reshape((2, 4, 16, 16)) % 17, mx.nd.ones((8, 4, 3, 3))
    for step in range(4):
        if step % 2:
            mx.nd.Convolution(data + step, weight, no_bias=True, kernel=(3, 3), num_filter=8, out=out)
        else:
            out[:] = step
        expected = out.copy().asnumpy() * 10
        store.pushpull("w", out)
        assert np.array_equal(out.asnumpy(), expected)


def test_gradients_of_elastic_jobs_are_scaled(store: BytePS, client: Any) -> None:
    """A sum of floats to which fewer ranks contributed is scaled, part by part. Integers and broadcasts are not."""
    client.elastic = True
    for dtype, expected in (("float32", [4, 4, 2]), ("float16", [4, 4, 2]), ("int32", [2, 2, 2])):
        gradient = mx.nd.ones((3,), dtype=dtype)
        store.pushpull(dtype, gradient)
        ticket = client.next_started()
        ticket.contributions = [Contribution(0, 2, 1)]
        ticket.finish(np.full(3, 2))
        assert gradient.asnumpy().tolist() == expected
    weight = mx.nd.ones((3,))
    client.peers = lambda ticket: None
    store.broadcast("w", weight)
    assert weight.asnumpy().tolist() == [1, 1, 1]
