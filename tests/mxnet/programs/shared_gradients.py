"""A worker that shares its gradients, in all ways in which gluon makes them.

Prints after each part how many bytes of gradients lie in memory that the aggregator reads, and a digest of all
parameters and gradients.
"""

import ctypes
import gc
import hashlib
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import psum.mxnet
from psum.client import shared_client
from psum.mxnet import mx
from psum.mxnet.arrays.dlpack import address_of
from psum.mxnet.compat import MAJOR_VERSION
from psum.mxnet.shared_gradients import SharedGradients

#: How long the engine may take to let arrays go.
PATIENCE_SECONDS = 10.0

#: Gradients of fewer bytes are not shared.
LEAST_BYTES = 65536

nn = mx.gluon.nn
shares = "shm" in shared_client().planes


def array(values: Any) -> Any:
    """An array that blocks take."""
    return (mx.np if MAJOR_VERSION >= 2 else mx.nd).array(values, dtype=values.dtype)


def seed(net: Any) -> None:
    """Makes all parameters, with values that depend on their places in the network only."""
    net(array(np.zeros((2, 32, 8, 8), np.float32)))
    for number, parameter in enumerate(net.collect_params().values()):
        chance = np.random.default_rng(number)
        parameter.set_data(array((0.1 * chance.standard_normal(parameter.shape)).astype(parameter.dtype)))


def network(*, units: int = 0) -> Any:
    """Convolutions, whose gradients oneDNN computes, and a layer whose size is known at the first step."""
    net = nn.HybridSequential()
    net.add(nn.Conv2D(64, 3, in_channels=32), nn.Conv2D(64, 3, in_channels=64), nn.Dense(100, in_units=units))
    net.initialize()
    return net


def train(net: Any, trainer: Any, steps: int, change: Callable[[int], None] = lambda _: None) -> None:
    """Some steps with data that depend on the rank."""
    chance = np.random.default_rng(shared_client().rank)
    for step in range(steps):
        change(step)
        data = array(chance.standard_normal((2, 32, 8, 8)).astype(net[0].weight.dtype))
        with mx.autograd.record():
            loss = (net(data) ** 2).mean()
        loss.backward()
        trainer.step(2)


def trainer_of(net: Any) -> Any:
    """A trainer that sums with psum."""
    return mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.01}, kvstore="byteps")


def shared_bytes(expected: int) -> int:
    """How many bytes of gradients lie there, once the engine has let others go.

    Nothing tells when it has. So this waits until there are as many as expected, if memory is shared, or for long.
    """
    shared = SharedGradients.of(shared_client())
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        mx.nd.waitall()
        gc.collect()
        mx.nd.waitall()
        if shared.nbytes == (expected if shares else 0) or time.monotonic() > deadline:
            return shared.nbytes
        time.sleep(0.01)


def bytes_of(gradient: Any) -> int:
    return int(gradient.size) * np.dtype(gradient.dtype).itemsize


def report(what: str, net: Any) -> None:
    """Prints what the test compares."""
    digest = hashlib.blake2b(digest_size=8)
    for parameter in net.collect_params().values():
        digest.update(parameter.data().asnumpy().tobytes())
        digest.update(parameter.grad().asnumpy().tobytes())
    check_in_place(net)
    sizes = [bytes_of(parameter.grad()) for parameter in net.collect_params().values()]
    expected = sum(size for size in sizes if size >= LEAST_BYTES)
    print(what, digest.hexdigest(), shared_bytes(expected), sep=" / ")


def check_in_place(net: Any) -> None:
    """Each large gradient is where the store looks for it."""
    shared = SharedGradients.of(shared_client())
    for parameter in net.collect_params().values():
        gradient = parameter.grad()
        gradient.wait_to_read()
        size = bytes_of(gradient)
        assert (shared.block_of(gradient, size) is not None) == (shares and size >= LEAST_BYTES), parameter


def deferred(mode: dict[str, bool]) -> None:
    """Gradients are made in the first step."""
    net = network()
    net.hybridize(**mode)
    psum.mxnet.share_gradients(net)
    seed(net)
    train(net, trainer_of(net), 3)
    report(f"deferred {mode}", net)


def used_before(mode: dict[str, bool]) -> None:
    """Gradients were used before, and the program keeps them."""
    net = network(units=64 * 16)
    net.hybridize(**mode)
    seed(net)
    trainer = trainer_of(net)
    train(net, trainer, 2)
    parameters = net.collect_params()
    kept = [parameter.grad() for parameter in parameters.values()]
    before = [gradient.asnumpy().copy() for gradient in kept]
    psum.mxnet.share_gradients(parameters)
    psum.mxnet.share_gradients(parameters)
    for gradient, values, parameter in zip(kept, before, parameters.values(), strict=True):
        assert parameter.grad() is gradient
        assert (gradient.asnumpy() == values).all()
    train(net, trainer, 2)
    report(f"used before {mode}", net)


def made_anew() -> tuple[Any, int]:
    """Gradients that add up, of a network that is initialized again, and of another type.

    Returns a view of one, and the bytes of that.
    """
    net = network(units=64 * 16)
    seed(net)
    psum.mxnet.share_gradients(list(net.collect_params().values()))
    for parameter in net.collect_params().values():
        parameter.grad_req = "add"

    def zero(step: int) -> None:
        for parameter in net.collect_params().values():
            assert parameter.grad().asnumpy().any() == bool(step)
            # MXNet 2.0.0b1 does that with operators of mx.nd, which do not take the arrays of its own blocks.
            if MAJOR_VERSION >= 2:
                parameter.grad()[:] = 0
            else:
                parameter.zero_grad()

    trainer = trainer_of(net)
    train(net, trainer, 3, zero)
    report("add", net)
    net.initialize(force_reinit=True)
    seed(net)
    (net if MAJOR_VERSION >= 2 else net.collect_params()).reset_ctx(mx.cpu(0))
    zeroed = net.collect_params().values()
    assert not any(parameter.grad().asnumpy().any() for parameter in zeroed)
    train(net, trainer, 2)
    report("made anew", net)
    net.cast("float64")
    train(net, trainer_of(net), 2)
    report("cast", net)
    gradient = net[0].weight.grad()
    return gradient[1:2], bytes_of(gradient)


def forked() -> None:
    """A forked process writes to a gradient, and ends."""
    net = network(units=64 * 16)
    seed(net)
    psum.mxnet.share_gradients(net)
    train(net, trainer_of(net), 1)
    gradient = net[1].weight.grad()
    before = gradient.asnumpy()
    child = os.fork()
    if not child:
        ctypes.memset(address_of(gradient), 1, 1000)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (gradient.asnumpy() == before).all()
    train(net, trainer_of(net), 1)
    report("forked", net)


deferred({"active": False})
deferred({})
deferred({"static_alloc": True, "static_shape": True})
used_before({"static_alloc": True, "static_shape": True})
view, kept = made_anew()
print("a view keeps", shared_bytes(kept), sep=" / ")
del view
forked()
print("dropped", shared_bytes(0), sep=" / ")
