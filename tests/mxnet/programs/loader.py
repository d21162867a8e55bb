"""A worker whose DataLoader forks two processes in every epoch while gradients are summed; prints what ends it.

usage: loader.py FILE    which is made after some epochs, with the ids of its DataLoader's processes
"""

import multiprocessing
import os
import pathlib
import sys

import numpy as np

from psum.mxnet.compat import MXNetError, mx

array = mx.np.array if mx.__version__[0] == "2" else mx.nd.array
net = mx.gluon.nn.Dense(1, in_units=2, use_bias=False)
net.initialize(mx.init.One())
trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.0}, kvstore="byteps")
data = mx.gluon.data.ArrayDataset(np.array([[1.0, 2.0]] * 8, np.float32))
steps = 0
try:
    while True:
        for batch in mx.gluon.data.DataLoader(data, batch_size=2, num_workers=2):
            with mx.autograd.record():
                loss = net(batch).sum()
            loss.backward()
            trainer.step(2)
            # Raises the error of the step before.
            assert loss.asnumpy() == 6.0
            steps += 1
            if steps == 10:
                report = pathlib.Path(f"{sys.argv[1]}.part")
                report.write_text(" ".join(str(c.pid) for c in multiprocessing.active_children()))
                report.rename(sys.argv[1])
except MXNetError as error:
    print(str(error).replace("\n", " "))
print(os.getpid(), "ends")
