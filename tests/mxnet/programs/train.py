"""A worker that trains a small convolutional network on its part of each batch, with one device and with two.

usage: train.py FOLDER    its final parameters are left in FOLDER/RANK-of-WORKERS-DEVICES.npz
"""

import pathlib
import sys
from typing import Any

import numpy as np

from psum.mxnet.compat import MAJOR_VERSION, mx

STEPS = 4
BATCH = 12

array = mx.np.array if MAJOR_VERSION >= 2 else mx.nd.array


def train(devices: list[Any], rank: int, num_workers: int) -> list[np.ndarray[Any, Any]]:
    """Trains, and returns the parameters: the copies of the first on each device, then those of the second, …"""
    # Trainer gives all ranks rank 0's weights in its first step, after the first gradients were computed.
    mx.random.seed(1)
    net = mx.gluon.nn.HybridSequential()
    net.add(
        mx.gluon.nn.Conv2D(4, 3, in_channels=1, activation="relu"),
        mx.gluon.nn.MaxPool2D(),
        mx.gluon.nn.Flatten(),
        mx.gluon.nn.Dense(8, in_units=36, activation="tanh"),
        mx.gluon.nn.Dense(3, in_units=8),
    )
    net.initialize(mx.init.Xavier(), ctx=devices)
    net.hybridize()
    optimizer_params = {"learning_rate": 0.1, "momentum": 0.9}
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", optimizer_params, kvstore="byteps")
    loss_of = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    random = np.random.default_rng(7)
    for _ in range(STEPS):
        images = random.normal(size=(BATCH, 1, 8, 8)).astype(np.float32)
        labels = random.integers(3, size=BATCH)
        parts = zip(
            np.array_split(images, num_workers)[rank].reshape(len(devices), -1, 1, 8, 8),
            np.array_split(labels, num_workers)[rank].reshape(len(devices), -1),
            devices,
            strict=True,
        )
        with mx.autograd.record():
            losses = [loss_of(net(array(x, ctx=d, dtype="float32")), array(y, ctx=d)) for x, y, d in parts]
        for loss in losses:
            loss.backward()
        trainer.step(BATCH)
    # The names differ between the versions of MXNet, the order does not.
    return [p.data(d).asnumpy() for p in net.collect_params().values() for d in devices]


job = mx.kv.create("byteps")
for count in (1, 2):
    parameters = train([mx.cpu(n) for n in range(count)], job.rank, job.num_workers)
    np.savez(pathlib.Path(sys.argv[1]) / f"{job.rank}-of-{job.num_workers}-{count}.npz", *parameters)
