"""A worker of an elastic job with four optimizers. After each step it prints a hash of its parameters.

The last one scales its loss, as AMP does: the scale doubles after two steps, and is halved when a gradient overflows on
one rank.

usage: joining.py STEP DEVICE    it trains on cpu(DEVICE); rank 1 is killed in this step, unless it joins the job
When all ranks are there again, the job makes some more steps, and ends.
"""

import hashlib
import importlib
import os
import signal
import sys
import time
from typing import Any

import psum.mxnet
from psum.mxnet import mx

#: In every so many steps, a gradient overflows on rank 0.
OVERFLOW_STEPS = 5

#: How many steps all ranks make together after the join.
MORE = 4

kill_at, device = int(sys.argv[1]), mx.cpu(int(sys.argv[2]))
job = mx.kv.create("byteps")
rank, size = job.rank, job.num_workers
mx.random.seed(1)


def network_and_loss() -> tuple[Any, Any]:
    """A network whose first layer finds its shape with the first batch."""
    network = mx.gluon.nn.HybridSequential()
    network.add(mx.gluon.nn.Dense(16, activation="tanh"), mx.gluon.nn.BatchNorm(), mx.gluon.nn.Dense(3, in_units=16))
    network.initialize(mx.init.Xavier(), ctx=device)
    return list(network.collect_params().values()), lambda values: (network(values) ** 2).mean()


def half_and_loss() -> tuple[Any, Any]:
    """A parameter in float16, for which MXNet has few operators on the CPU."""
    half = mx.gluon.Parameter("half", shape=(8, 5), dtype="float16", init="ones")
    half.initialize(ctx=device)
    return [half], lambda values: ((half.data().astype("float32") * values) ** 2).mean()


amp: Any = importlib.import_module("mxnet.amp" if psum.mxnet.compat.MAJOR_VERSION >= 2 else "mxnet.contrib.amp")
# No operators in float16: MXNet has few of them on the CPU.
amp.init(target_precision_ops=[], conditional_fp32_ops=[], fp32_ops=[])

MOMENTUM = {"learning_rate": 0.1, "momentum": 0.9}
trainers, losses = [], []
for make, optimizer, options in (
    (network_and_loss, "sgd", MOMENTUM),
    (network_and_loss, "adam", {"lr_scheduler": mx.lr_scheduler.FactorScheduler(3, 0.9, base_lr=0.01)}),
    (half_and_loss, "sgd", MOMENTUM | {"multi_precision": True}),
    (half_and_loss, "sgd", MOMENTUM | {"multi_precision": True}),
):
    parameters, loss_of = make()
    trainers.append(mx.gluon.Trainer(parameters, optimizer, options, kvstore="byteps"))
    losses.append(loss_of)
amp.init_trainer(trainers[-1])
scaler = trainers[-1]._amp_loss_scaler
scaler._scale_seq_len = 2
scales = set()
ema = mx.nd.zeros((3,), ctx=device)
state = psum.mxnet.ElasticState(trainers, batch=0, more=MORE, ema=ema)
print("joined" if state.joined else "began", flush=True)
state.on_change(lambda members: print("members", *members, flush=True))
while True:
    # A lost rank may be among the members for two more steps.
    if state.batch > kill_at + 2 and len(state.members) == size:
        if not state.more:
            break
        state.more -= 1
    if rank == 1 and state.batch == kill_at and not state.joined:
        mx.nd.waitall()
        os.kill(os.getpid(), signal.SIGKILL)
    mx.random.seed(size * state.batch + rank)
    for loss_of, trainer in zip(losses, trainers, strict=True):
        values = mx.nd.random.normal(shape=(8, 5), ctx=device)
        if psum.mxnet.compat.MAJOR_VERSION >= 2:
            values = values.as_np_ndarray()
        with mx.autograd.record():
            loss = loss_of(values)
            if trainer is trainers[-1]:
                if rank == 0 and state.batch % OVERFLOW_STEPS == OVERFLOW_STEPS - 1:
                    loss = loss * float("inf")
                with amp.scale_loss(loss, trainer) as loss:
                    pass
        loss.backward()
        trainer.step(size)
    scales.add(scaler.loss_scale)
    job.pushpull("ema", ema + rank + state.batch, out=ema)
    ema *= 0.25
    state.batch += 1
    state.step()
    digest = hashlib.sha256(ema.asnumpy().tobytes())
    digest.update(repr(sorted(vars(scaler).items())).encode())
    for trainer in trainers:
        for parameter in trainer._params:
            # The running means and variances of BatchNorm are those of each rank's own data.
            if parameter.grad_req != "null":
                digest.update(parameter.data().asnumpy().tobytes())
    print("step", state.batch, digest.hexdigest(), flush=True)
    time.sleep(0.02)
print("scales", len(scales), flush=True)
