"""Sums arrays on the last GPU only. No other GPU may be used, and queueing ahead must cost neither memory nor time."""

import ctypes
import time

import psum.mxnet
from psum.mxnet.compat import mx

KEYS, STEPS, LARGE = 8, 30, 64 << 20

driver = ctypes.CDLL("libcuda.so.1")


def devices_with_a_context() -> list[int]:
    """Return the GPUs on which this process has a CUDA context, and thus uses memory."""
    found = []
    for number in range(mx.context.num_gpus()):
        device, flags, active = ctypes.c_int(), ctypes.c_uint(), ctypes.c_int()
        assert driver.cuDeviceGet(ctypes.byref(device), ctypes.c_int(number)) == 0
        assert driver.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active)) == 0
        if active.value:
            found.append(number)
    return found


store = psum.mxnet.BytePS()
last = mx.gpu(mx.context.num_gpus() - 1)

large = mx.nd.array(range(1), ctx=mx.cpu()).broadcast_to((LARGE,)).copyto(last)
large.wait_to_read()
calls = []
for _ in range(2):
    begun = time.perf_counter()
    store.pushpull("large", large)
    calls.append(time.perf_counter() - begun)
    large.wait_to_read()
print(f"256 MiB: the first call took {1e3 * calls[0]:.1f} ms, the second {1e3 * calls[1]:.1f} ms", flush=True)

arrays = [mx.nd.array([key + store.rank] * 300_000, ctx=mx.cpu()).copyto(last) for key in range(KEYS)]
mx.nd.waitall()
before = store.stage_statistics.allocated
begun = time.perf_counter()
for _ in range(STEPS):
    for key, array in enumerate(arrays):
        store.pushpull(key, array, priority=-key)
queued = time.perf_counter() - begun
mx.nd.waitall()
stages = store.stage_statistics.allocated - before
print(f"{STEPS} steps of {KEYS} keys: queued in {1e3 * queued:.0f} ms, {stages} stages", flush=True)
assert stages == KEYS
for key, array in enumerate(arrays):
    total = sum(key + rank for rank in range(store.num_workers)) * store.num_workers ** (STEPS - 1)
    # All ranks have the same values. With 2 workers a total is a small number times a power of two, so it is exact.
    assert set(array.asnumpy()) == {float(total)}, (key, total)

found = devices_with_a_context()
print(f"contexts on GPUs {found} of {mx.context.num_gpus()}", flush=True)
assert found == [last.device_id]
