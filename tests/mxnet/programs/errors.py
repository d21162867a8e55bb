"""Hundreds of operations fail at once. Prints what MXNet's engine did with the list of their errors."""

import ctypes
import threading

from psum.mxnet.compat import MXNetError, mx
from psum.mxnet.engine import operations

COUNT = 300

#: Where ThreadedEngine has its std::vector of errors in the wheel of MXNet 1.9.1: the list's start, end, and limit.
LIST_OFFSET = 0x78
ENTRY_BYTES = 16


def what_waitall_raises() -> str:
    try:
        mx.nd.waitall()
    except MXNetError as error:
        return str(error).splitlines()[0]
    return "nothing"


running: list[operations.Operation] = []
all_run = threading.Event()


def run(operation: operations.Operation) -> None:
    running.append(operation)
    if len(running) == COUNT:
        all_run.set()


gradients = [mx.nd.ones((4,)) for _ in range(COUNT)]
weights = [mx.nd.ones((4,)) for _ in range(COUNT)]
for gradient, weight in zip(gradients, weights, strict=True):
    operations.push(gradient, operations.Operation(run, operations.ignore))
    mx.nd.sgd_update(weight, gradient, out=weight, lr=0.1)
all_run.wait()
errors = (ctypes.c_uint64 * 3).from_address(running[0]._engine + LIST_OFFSET)
first, end, limit = errors
for operation in running:
    operation.complete("a sum failed")
# Waits until the engine has skipped the updates. MXNet's own waits would take the errors.
skipped = threading.Semaphore(0)
for weight in weights:
    operations.call_when_ready(weight.handle, skipped.release, writes=False)
for _ in weights:
    skipped.acquire()
print("grown while operations failed:", errors[0] != first or errors[2] != limit)
print("errors:", (errors[1] - errors[0] - (end - first)) // ENTRY_BYTES)
print("waits for everything:", [what_waitall_raises(), what_waitall_raises()])
