"""The pool of arrays that stand in for those of devices."""

import numpy as np

from psum.mxnet import StageStatistics
from psum.mxnet._arguments import Arrays
from psum.mxnet._compat import mx
from psum.mxnet._stages import StagePool


def arrays(shape: tuple[int, ...], dtype: str = "float32") -> Arrays:
    return Arrays.of(mx.nd.zeros(shape, dtype=dtype), "value")


def test_pinned_and_alike() -> None:
    """What is lent is pinned memory of the wanted shape and type."""
    stage = StagePool().take(arrays((2, 3), "float16"))
    assert stage.context.device_type == "cpu_pinned"
    assert stage.shape == (2, 3)
    assert stage.dtype is np.float16


def test_reused_where_alike() -> None:
    """What is given back is lent again for the same shape and type, and for no other."""
    pool = StagePool()
    like = arrays((2, 3))
    first, second = pool.take(like), pool.take(like)
    assert pool.statistics() == StageStatistics(allocated=2, in_use=2)
    pool.give_back(second, like)
    assert pool.take(arrays((3, 2))) is not second
    assert pool.take(arrays((2, 3), "int32")) is not second
    assert pool.take(arrays((2, 3))) is second
    assert first is not second
    assert pool.statistics() == StageStatistics(allocated=4, in_use=4)


def test_dropped_is_not_lent_again() -> None:
    """What is dropped does not count any more, and another array is lent next."""
    pool = StagePool()
    like = arrays((2,))
    first = pool.take(like)
    pool.drop()
    assert pool.statistics() == StageStatistics(allocated=0, in_use=0)
    assert pool.take(like) is not first
