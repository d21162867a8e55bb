"""A worker that uses the members of the documentation page together with another, and checks the results."""

import numpy as np

from psum.mxnet.compat import mx

store, other = mx.kv.create("byteps"), mx.kv.create("byteps")
rank, count = store.rank, store.num_workers
assert count == 2
assert store.local_rank == rank

# On other ranks than 0 the value is not read, and not changed if it is not out.
value = mx.nd.full((2, 3), 5.0 if rank == 0 else float("nan"))
outs = [mx.nd.zeros((2, 3), ctx=mx.cpu(n)) for n in range(3)]
store.broadcast("w", value, outs)
assert all(np.all(out.asnumpy() == 5) for out in outs)
assert np.all(value.asnumpy() == 5) if rank == 0 else np.all(np.isnan(value.asnumpy()))
store.broadcast("w", value)
assert np.all(value.asnumpy() == 5)

# Sums of all types.
bfloat16 = np.dtype([("bfloat16", np.uint16)])
for dtype in ("float16", "float32", "float64", "uint8", "int8", "int32", "int64", bfloat16):
    array = mx.nd.full((3, 5), rank + 1.0).astype(dtype)
    store.pushpull(str(dtype), array)
    assert np.all(array.astype("float32").asnumpy() == 3), dtype

# Many keys at once, in another order on each rank, with rounds in flight.
keys = range(20) if rank == 0 else reversed(range(20))
arrays = {f"many {key}": mx.nd.full((1000 * key + 1,), float(key)) for key in keys}
for _ in range(3):
    for priority, (key, array) in enumerate(arrays.items()):
        store.pushpull(key, array, priority=priority)
for key, array in arrays.items():
    assert np.all(array.asnumpy() == float(key.removeprefix("many ")) * 8)

# NaN and infinities come through; 3 and '3' are one key; a second store has keys of its own.
array = mx.nd.array([float("nan"), float("inf"), 1.0 if rank == 0 else float("-inf")])
store.pushpull("3" if rank == 0 else 3, array, out=array)
np.testing.assert_array_equal(array.asnumpy(), [np.nan, np.inf, -np.inf])
far = mx.nd.ones((7,))
other.pushpull(3, far)
assert far.asnumpy().tolist() == [2] * 7

# Arrays without dimensions or elements.
with mx.util.np_shape(True):
    for shape in ((), (0, 2), (1,)):
        array = mx.nd.ones(shape)
        store.pushpull(f"shape {shape}", array)
        assert array.asnumpy().tolist() == np.full(shape, 2.0).tolist()

# The result of a convolution, whatever its layout.
data, weight = mx.nd.ones((2, 4, 16, 16)), mx.nd.full((8, 4, 3, 3), rank + 1.0)
activation = mx.nd.Convolution(data, weight, no_bias=True, kernel=(3, 3), num_filter=8)
store.pushpull("activation", activation)
assert np.all(activation.asnumpy() == 36 * 3)
print("done")
