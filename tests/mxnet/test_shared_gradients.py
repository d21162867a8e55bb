"""Gradients in memory that aggregators read: MXNet writes them there in every way, and the sums are the same bits."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from psum.client import PsumError, Settings, connect
from psum.mxnet import BytePS, share_gradients
from psum.mxnet.arrays.dlpack import address_of
from psum.mxnet.compat import MXNetError, mx
from psum.mxnet.engine import operations
from psum.mxnet.shared_gradients import SharedGradients
from tests.polling import wait_until

#: Bytes of the program's gradients in single precision that are large enough.
SIZE = 4 * (64 * 32 * 9 + 64 * 64 * 9 + 100 * 1024)


@pytest.mark.timeout(120)
def test_gradients_lie_there_however_they_are_made(start_workers: Callable[..., Any]) -> None:
    """A training with them has the same bits as one where no memory is shared. When they are gone, nothing is left.

    The program has networks of all kinds of graphs, gradients that were used before, that add up, that are made anew,
    and of another type. A forked process writes to one.
    """
    # One worker each is enough: its sums are what the aggregator has read.
    started = [
        start_workers("shared_gradients.py", num_workers=1, PSUM_JOB=plane, PSUM_PLANE=plane)[0]
        for plane in ("shm", "inline")
    ]
    shared, copied = ([line.split(" / ") for line in run.check().splitlines()] for run in started)
    assert [row[:-1] for row in shared] == [row[:-1] for row in copied]
    assert {row[-1] for row in copied} == {"0"}
    sizes = {row[0]: int(row[-1]) for row in shared}
    assert sizes.pop("cast") == 2 * SIZE
    assert sizes.pop("a view keeps") == 8 * 64 * 32 * 9
    assert sizes.pop("dropped") == 0
    assert set(sizes.values()) == {SIZE}
    assert len(sizes) == 7


def test_wrong_arguments() -> None:
    """They are named, and so is a call while autograd records."""
    with connect(Settings()) as client:
        BytePS(client)
        with pytest.raises(TypeError, match="share_gradients of str: expected a Block"):
            share_gradients("net", client)
        with pytest.raises(TypeError, match="share_gradients of int"):
            share_gradients([1], client)
        with mx.autograd.record(), pytest.raises(RuntimeError, match="inside autograd"):
            share_gradients([], client)


def test_a_failed_sum_separates_the_gradient(aggregator: str) -> None:
    """The reader gets the error. The gradient keeps its address, can be written to, and is copied from then on."""
    client = connect(Settings(aggregators=(aggregator,), num_workers=2, round_timeout=30.0))
    try:
        store = BytePS(client)
        net = mx.gluon.nn.Dense(200, in_units=100, use_bias=False)
        net.initialize()
        share_gradients(net, client)
        gradient, shared = net.weight.grad(), SharedGradients.of(client)
        address = address_of(gradient)
        block = shared.block_of(gradient, 80_000)
        assert block is not None
        gradient[:] = 1
        store.pushpull("w", gradient)
        wait_until(
            lambda: client.load().waiting_shards == client.load().under_way_bytes == 0 and client.load().operations > 0
        )
        client.fail(PsumError("given up"))
        with pytest.raises(MXNetError, match="given up"):
            gradient.wait_to_read()
        gradient[:] = 5
        assert (gradient.asnumpy() == 5).all()
        assert address_of(gradient) == address
        assert shared.block_of(gradient, 80_000) is None
        assert shared.nbytes == 0
        held = client._memory.staging
        assert held is not None
        part = held._segment._directory, held.name, block.offset
        with open(f"{part[0]}/{part[1]}", "rb") as file:
            file.seek(part[2])
            assert set(np.frombuffer(file.read(80_000), np.float32)) == {1.0}
    finally:
        client.close(0.5)
    assert operations.wait_until_idle(10.0)
    assert (gradient.asnumpy() == 5).all()
