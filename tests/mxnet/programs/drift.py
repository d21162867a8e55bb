"""A worker whose parameters drift away from the other's, in each of the known ways.

For each way it prints what check_in_step says of the parameters in the end, or before, with PSUM_CHECK_EVERY, the
Trainer by itself.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from psum.client import OutOfStepError
from psum.mxnet import check_in_step
from psum.mxnet.compat import MAJOR_VERSION, mx

array = mx.np.array if MAJOR_VERSION >= 2 else mx.nd.array
rank = mx.kv.create("byteps").rank


def last_batches(nets: list[Any], step: Callable[..., None]) -> None:
    """Divides the same sum by another number on each rank."""
    step(nets, batch_size=(4 - rank) * 2)


def stale_gradients(nets: list[Any], step: Callable[..., None]) -> None:
    """Uses another part of the network on each rank, and updates that part only."""
    step([nets[rank]], ignore_stale_grad=True)


def set_data(nets: list[Any], step: Callable[..., None]) -> None:
    """Loads parameters on one rank after the first step, in which Trainer gave all ranks those of rank 0."""
    step(nets)
    if rank == 1:
        nets[0].weight.set_data(nets[0].weight.data() + 1)
    step(nets)


def force_reinit(nets: list[Any], step: Callable[..., None]) -> None:
    """Initializes the parameters again, differently on each rank."""
    step(nets)
    np.random.seed(rank)
    mx.random.seed(rank)
    nets[1].initialize(mx.init.Xavier(), force_reinit=True)
    step(nets)


def none(nets: list[Any], step: Callable[..., None]) -> None:
    """Does nothing wrong."""
    step(nets)
    step(nets)


def train(way: Callable[..., None]) -> Any:
    """Trains in one of these ways; returns the parameters."""
    mx.random.seed(1)
    nets: list[Any] = []
    parameters: dict[str, Any] = {}
    for name in "ab":
        net = mx.gluon.nn.Dense(2, in_units=3)
        net.initialize(mx.init.Xavier())
        parameters |= {f"{name}.weight": net.weight, f"{name}.bias": net.bias}
        nets.append(net)
    trainer = mx.gluon.Trainer(parameters, "sgd", {"learning_rate": 0.1}, kvstore="byteps")

    def step(used: list[Any], batch_size: int = 4, **options: Any) -> None:
        with mx.autograd.record():
            losses = [(net(array([[1.0, 2.0, 3.0]])) ** 2).sum() for net in used]
        mx.autograd.backward(losses)
        trainer.step(batch_size, **options)

    way(nets, step)
    return parameters


for way in (last_batches, stale_gradients, set_data, force_reinit, none):
    try:
        check_in_step(train(way))
        print("in step")
    except OutOfStepError as error:
        print(error)

# All ranks take rank 0's parameters again.
store = mx.kv.create("byteps")
drifted = mx.gluon.nn.Dense(2, in_units=3)
drifted.initialize(mx.init.Constant(float(rank)))
try:
    check_in_step(drifted)
except OutOfStepError:
    for name, parameter in drifted.collect_params().items():
        store.broadcast(name, parameter.data(), parameter.list_data())
    check_in_step(drifted)
    print("in step again")
