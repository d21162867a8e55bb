"""The MXNet KVStore 'byteps': sums gradients over all workers of a job.

    import psum.mxnet  # before mxnet, whose wheels then work with newer NumPy
    import mxnet as mx

    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", kvstore="byteps")

Importing this module registers the store, with MXNet 1.9 and 2.0, and makes its name work in Trainer and Module also
with a single device. The environment says which job the process belongs to; without, it is a job of one worker.
"""

from psum.mxnet import _integration, _lifecycle
from psum.mxnet._in_step import check_in_step
from psum.mxnet._kvstore import BytePS
from psum.mxnet._stages import StageStatistics

__all__ = ["BytePS", "StageStatistics", "check_in_step"]

_integration.install()
_lifecycle.install()
