"""Copies and sums of arrays, which MXNet's engine makes in the order in which they are queued."""

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, Final

from psum.client import ElementType
from psum.mxnet.arrays.inspection import context_of
from psum.mxnet.compat import MAJOR_VERSION, QUICK, check_call, mx

_Handles: Final = ctypes.POINTER(ctypes.c_void_p)
_Storages: Final = ctypes.POINTER(ctypes.c_int)

_invoke: Final = QUICK["MXImperativeInvoke" if MAJOR_VERSION >= 2 else "MXImperativeInvokeEx"]


def _operator(name: bytes) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    check_call(QUICK.NNGetOpHandle(name, ctypes.byref(handle)))
    return handle


_copyto: Final = _operator(b"_copyto")

#: The types for which MXNet's add_n has a kernel on GPUs. It adds the others on the host only.
_ADDED_ON_GPUS: Final = frozenset(
    {
        ElementType.FLOAT32,
        ElementType.FLOAT64,
        ElementType.FLOAT16,
        ElementType.UINT8,
        ElementType.INT32,
        ElementType.INT64,
    }
)


def copy(source: Any, target: Any) -> None:
    """Queues a copy of an array to another of the same shape and type, on any device.

    NDArray.copyto does the same, but releases the interpreter's lock twice, each time to one of the engine's threads.
    """
    if source is target:
        return
    inputs, outputs = ctypes.byref(source.handle), ctypes.byref(_Handles(target.handle))
    storages = ctypes.byref(_Storages())
    check_call(_invoke(_copyto, 1, inputs, ctypes.byref(ctypes.c_int(1)), outputs, 0, None, None, storages))


def add(addends: Sequence[Any], target: Any, element_type: ElementType) -> None:
    """Queues the sum of two or more arrays on any devices into an array in host memory, which may be one of them.

    MXNet adds them up on the device of the first one, if it can. Then it copies only the sum to the host.
    """
    device, host = context_of(addends[0]), context_of(target)
    if device.device_type == "gpu" and element_type not in _ADDED_ON_GPUS:
        device = host
    brought = [item if context_of(item) == device else item.copyto(device) for item in addends]
    if device == host:
        mx.nd.add_n(*brought, out=target)
    else:
        copy(mx.nd.add_n(*brought), target)


@contextlib.contextmanager
def copying(shape: tuple[int, ...]) -> Iterator[None]:
    """Keeps copies out of a graph that autograd records, and allows copies of arrays without dimensions."""
    recording = mx.autograd.pause() if _is_recording() else contextlib.nullcontext()
    with recording, mx.util.np_shape(True) if shape == () else contextlib.nullcontext():
        yield


def _is_recording() -> bool:
    found = ctypes.c_bool()
    check_call(QUICK.MXAutogradIsRecording(ctypes.byref(found)))
    return found.value
