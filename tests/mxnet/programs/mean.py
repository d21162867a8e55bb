"""A worker of an elastic job that trains with gradients of known values. Rank 1 is killed in the midst of it.

The others check their means, and print a hash of their parameters.
"""

import hashlib
import os
import signal

import numpy as np

from psum.mxnet.compat import mx

#: Each rank's gradients.
GRADIENTS = (1.0, 4.0, 16.0)

#: The step in which rank 1 is killed, and the size of each of two parameters. The large one has shards everywhere.
LAST_STEP = 2
SIZES = (7, 300_000)

job = mx.kv.create("byteps")
rank, size = job.rank, job.num_workers
parameters = [mx.gluon.Parameter(f"p{number}", shape=(length,), init="zeros") for number, length in enumerate(SIZES)]
for parameter in parameters:
    parameter.initialize()
trainer = mx.gluon.Trainer(parameters, "sgd", {"learning_rate": 1.0}, kvstore="byteps")
counts = mx.nd.ones((3,), dtype="int32")
expected = 0.0
for step in range(6):
    if rank == 1 and step == LAST_STEP:
        mx.nd.waitall()
        os.kill(os.getpid(), signal.SIGKILL)
    with mx.autograd.record():
        loss = sum((parameter.data() * GRADIENTS[rank]).sum() for parameter in parameters)
    loss.backward()
    trainer.step(size)
    living = GRADIENTS if step < LAST_STEP else GRADIENTS[::2]
    expected -= sum(living) / len(living)
    for parameter in parameters:
        np.testing.assert_allclose(parameter.data().asnumpy(), expected, rtol=1e-6)
job.pushpull("counts", counts)
assert counts.asnumpy().tolist() == [2, 2, 2]
digest = hashlib.sha256()
for parameter in parameters:
    digest.update(parameter.data().asnumpy().tobytes())
print(digest.hexdigest())
