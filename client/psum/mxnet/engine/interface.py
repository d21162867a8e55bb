"""The part of MXNet's C interface that runs functions of Python's on the engine.

MXNet's Python interface cannot do this, but MXEnginePushAsyncND of its C interface can.
"""

import ctypes
from collections.abc import Callable
from typing import Final

from psum.mxnet.compat import MAJOR_VERSION, QUICK, check_call

#: What completes an operation (mxnet::engine::CallbackOnComplete): a function, the engine, and a parameter.
OnComplete: Final = ctypes.c_size_t * 3


class _Context(ctypes.Structure):
    """The device on which an operation runs (mxnet::Context)."""

    _fields_ = (("device_type", ctypes.c_int), ("device_id", ctypes.c_int32))


#: 1.9.1 calls with (RunContext*, OnComplete*, parameter), 2.0 with (RunContext*, OnStart*, OnComplete*, parameter).
RunFunction: Final = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (4 if MAJOR_VERSION >= 2 else 3))
ReleaseFunction: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# Keeps the interpreter's lock, as QUICK does. For errors this must be so: see error_room.py.
_CompleteFunction: Final = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)

_callbacks: Final[dict[int, Callable[..., None]]] = {}
"""The engine's functions that complete operations, by address. To make the object takes longer than to call it."""

_CPU: Final = _Context(1, 0)
_CPU_ADDRESS: Final = ctypes.c_void_p(ctypes.addressof(_CPU))
#: FnProperty::kCPUPrioritized: a pool of threads of its own, which takes the operation of highest priority first.
_PRIORITIZED: Final = ctypes.c_int(3)
_PRIORITIZED_ADDRESS: Final = ctypes.c_void_p(ctypes.addressof(_PRIORITIZED))
#: FnProperty::kAsync: the thread that pushes runs the operation if the array is ready then.
_AT_ONCE: Final = ctypes.c_int(4)
_AT_ONCE_ADDRESS: Final = ctypes.c_void_p(ctypes.addressof(_AT_ONCE))
PRIORITY_LIMIT: Final = 2**31 - 1

# A function object of its own, whose types are declared: ctypes then converts plain numbers by itself, which is faster.
_push: Final = QUICK["MXEnginePushAsyncND"]
_push.argtypes = [
    *[ctypes.c_void_p] * 5,
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_bool,
]

# An error is a `const dmlc::Error*`, of which the engine copies the std::runtime_error part only.
_libstdcxx: Final = ctypes.CDLL("libstdc++.so.6")
_construct_error: Final = _libstdcxx["_ZNSt13runtime_errorC1EPKc"]
_construct_error.argtypes, _construct_error.restype = [ctypes.c_void_p, ctypes.c_char_p], None
_destroy_error: Final = _libstdcxx["_ZNSt13runtime_errorD1Ev"]
_destroy_error.argtypes, _destroy_error.restype = [ctypes.c_void_p], None
#: At least the size of any implementation's std::runtime_error.
_ERROR_BYTES: Final = 64


def complete(function: int, engine: int, parameter: int, error: str | None) -> None:
    """Tells the engine that an operation has ended.

    Args:
        function: The function of the OnComplete that the engine passed to the operation.
        engine: The engine there.
        parameter: The parameter there.
        error: The text of the MXNetError that a reader of the array gets; None if all went well.
    """
    # The engine has one such function, perhaps a few.
    callback = _callbacks.get(function)
    if callback is None:
        callback = _callbacks[function] = _CompleteFunction(function)
    if error is None:
        callback(engine, parameter, None)
        return
    storage = ctypes.create_string_buffer(_ERROR_BYTES)
    # MXNet's Python side makes the type from the word before the first colon. C++ ends the text at a NUL.
    text = f"MXNetError: {error}".replace("\0", "")
    _construct_error(storage, text.encode(errors="replace"))
    try:
        callback(engine, parameter, ctypes.addressof(storage))
    finally:
        _destroy_error(storage)


def push(
    run: Callable[..., None],
    release: Callable[..., None],
    token: int,
    handle: ctypes.c_void_p,
    *,
    writes: bool,
    priority: int,
    always: bool,
    name: bytes,
    at_once: bool = False,
) -> None:
    """Queues an operation on one array.

    Args:
        run: A RunFunction.
        release: A ReleaseFunction. The engine calls it when it no longer needs the operation, run or not.
        token: The parameter that both get.
        handle: The NDArray's.
        writes: Whether the operation writes the array; else it reads it.
        priority: Higher values go first among operations that are ready; within ±PRIORITY_LIMIT.
        always: Whether the operation runs even if an earlier one on the array failed.
        name: What MXNet's profiler shows.
        at_once: Whether this thread runs the operation, here, if the array is ready now. Else a thread of the engine
            does.

    Raises:
        MXNetError: The engine did not take it.
    """
    array = ctypes.byref(handle)
    read, written = (None, array) if writes else (array, None)
    check_call(
        _push(
            run,
            token,
            release,
            _CPU_ADDRESS,
            read,
            not writes,
            written,
            writes,
            _AT_ONCE_ADDRESS if at_once else _PRIORITIZED_ADDRESS,
            priority,
            name,
            # The engine's own waits for an array are such operations.
            always,
        )
    )
