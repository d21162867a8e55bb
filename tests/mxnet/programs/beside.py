"""A worker that averages its accuracy beside a training, and waits for the others before it ends."""

import numpy as np

import psum.client
from psum.mxnet.compat import MAJOR_VERSION, mx

array = mx.np.array if MAJOR_VERSION >= 2 else mx.nd.array
net = mx.gluon.nn.Dense(1, in_units=1, use_bias=False)
net.initialize(mx.init.Zero())
trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 1.0}, kvstore="byteps")
averages = psum.client.shared_client().store()
rank = averages.client.rank
for _ in range(2):
    with mx.autograd.record():
        loss = net(array([[1.0]]))
    loss.backward()
    # Ranks have different numbers of samples, and measure at another moment than the others step.
    future = averages.push_pull_async("accuracy", counts := np.array([2.0 + rank, 4.0 + rank]), priority=-1000)
    trainer.step(1)
    future.result()
    print("accuracy", counts.tolist())
print("weight", float(net.weight.data().asnumpy()[0, 0]))
try:
    psum.client.connect()
except psum.client.TakenError as error:
    print(error)
mx.kv.create("byteps").barrier()
