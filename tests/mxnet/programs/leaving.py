"""Two workers of an elastic job, whose gradients MXNet computes late. Rank 1 leaves after a step, and rank 0 goes on.

Rank 0 prints its weight when rank 1 has left. Each step has subtracted the sum of the gradients, 1 and 3.
"""

import psum.mxnet
from psum.mxnet import mx

#: After how many steps rank 1 is asked to leave.
STEPS = 2

store = mx.kv.create("byteps")
parameter = mx.gluon.Parameter("weight", shape=(1,), init="zeros")
parameter.initialize()
trainer = mx.gluon.Trainer([parameter], "sgd", {"learning_rate": 1.0}, kvstore=store)
state = psum.mxnet.ElasticState(trainer, batch=0)
changed: list[int] = []
state.on_change(lambda members: changed.append(state.batch))
zeros = mx.nd.zeros((700, 700))
while not changed:
    if store.rank == 1 and state.batch == STEPS:
        state.leave()
    product = zeros
    for _ in range(10):
        product = mx.nd.dot(product, zeros)
    factor = product.sum() + 2 * store.rank + 1
    with mx.autograd.record():
        loss = parameter.data() * (factor.as_np_ndarray() if psum.mxnet.compat.MAJOR_VERSION >= 2 else factor)
    loss.backward()
    trainer.step(1)
    state.batch += 1
    state.step()
print(*changed, parameter.data().asnumpy().item(), flush=True)
