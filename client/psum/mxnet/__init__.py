"""The MXNet KVStore 'byteps': sums gradients over all workers of a job.

    from psum.mxnet import mx

    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", kvstore="byteps")

`mx` is MXNet. Its wheels use numpy.bool, which NumPy 1.24 removed. With a newer NumPy, as always on Python 3.12,
`import mxnet` fails unless this module was imported before. Tools that sort imports put mxnet first. A program that
takes MXNet from here works in any order, with any NumPy below 2.

Importing this module registers the store with MXNet 1.9 or 2.0, and makes its name work in Trainer and Module even with
a single device. The environment tells which job the process belongs to. By default it is a job of one worker.
"""

from psum.mxnet import integration, shared_gradients
from psum.mxnet.compat import mx
from psum.mxnet.elastic_state import ElasticState
from psum.mxnet.engine import lifecycle, waits
from psum.mxnet.kvstore import BytePS
from psum.mxnet.parameter_check import check_in_step
from psum.mxnet.shared_gradients import share_gradients
from psum.mxnet.staging.stages import StageStatistics

__all__ = ["BytePS", "ElasticState", "StageStatistics", "check_in_step", "mx", "share_gradients"]

integration.install()
shared_gradients.install()
lifecycle.install()
waits.install()
