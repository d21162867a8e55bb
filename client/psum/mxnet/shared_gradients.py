"""Gradients of gluon's parameters in memory that aggregators on the host read from, so that no step copies them there.

MXNet allocates gradients itself. psum gives a gradient other memory: the NDArray that the parameter has, and that the
program may hold, gets the handle of an array in memory that aggregators read. Autograd is told to write there.
"""

import ctypes
import functools
import gc
import logging
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from psum.client import Client, shared_client
from psum.client.per_client import PerClient
from psum.client.shared_arrays import LEAST_BYTES, SharedBlock
from psum.mxnet.arrays import copies
from psum.mxnet.arrays.dlpack import address_of
from psum.mxnet.arrays.inspection import DENSE, context_of, element_type_of, shape_of, storage_of
from psum.mxnet.arrays.lent_memory import LentMemory
from psum.mxnet.arrays.memory import queue_plain_layout, usable_in_place
from psum.mxnet.compat import mx

_log = logging.getLogger(__name__)


class _Lent(NamedTuple):
    """A gradient's memory.

    Attributes:
        block: The memory.
        memory: What MXNet has of it.
    """

    block: SharedBlock
    memory: LentMemory


class SharedGradients:
    """The gradients of one client that lie in its staging memory. From any thread.

    Args:
        client: The client.
    """

    def __init__(self, client: Client) -> None:
        # A weak reference: this lives as long as the client, and must not keep it alive.
        self._client = weakref.ref(client)
        self._lent: dict[int, _Lent] = {}
        """By address. Kept until MXNet has finished with the memory."""
        # Reentrant: a signal's handler may do anything.
        self._lock = threading.RLock()
        self._told = False

    @classmethod
    def of(cls, client: Client) -> "SharedGradients":
        """Returns those of a client."""
        return _shared.of(client)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._lent)

    @property
    def nbytes(self) -> int:
        """How many bytes of gradients lie in the staging memory."""
        self._settle()
        return sum(lent.block.size for lent in list(self._lent.values()) if lent.block.is_shared)

    def block_of(self, array: Any, size: int) -> SharedBlock | None:
        """Returns the memory of an array if it is a gradient; None if aggregators cannot read it there.

        Call it where the engine cannot touch the array, such as in an operation on it.

        Args:
            array: A dense NDArray in host memory, in the plain layout.
            size: Its size in bytes.
        """
        lent = self._lent.get(address_of(array)) if size >= LEAST_BYTES else None
        return lent.block if lent is not None and lent.block.is_shared and lent.block.size == size else None

    def place(self, parameter: Any) -> bool:
        """Places the gradient of a parameter. Returns whether it lies elsewhere now than before."""
        gradients = parameter._grad
        if parameter._data is None or gradients is None:
            return False
        # Of several devices' gradients, this one gets the sum of all, and is pushed.
        gradient = next((each for each in gradients if usable_in_place(context_of(each))), None)
        if gradient is None or storage_of(gradient) != DENSE or not self._place(gradient):
            return False
        mx.autograd.mark_variables(parameter._data, gradients, parameter.grad_req)
        return True

    def _place(self, gradient: Any) -> bool:
        shape = shape_of(gradient)
        try:
            element_type = element_type_of(gradient)
        except TypeError:
            return False
        size = math.prod(shape) * element_type.itemsize
        if size < LEAST_BYTES:
            return False
        # Only the plain layout has an address.
        queue_plain_layout(gradient)
        gradient.wait_to_read()
        if address_of(gradient) in self._lent:
            return False
        self._settle()
        client = self._client()
        block = None if client is None else client.arrays.block(size)
        if block is None:
            return False
        memory = LentMemory(block.address, shape, element_type)
        array = memory.take()
        with self._lock:
            self._lent[block.address] = _Lent(block, memory)
        # MXNet may use the memory until the process has ended, when Python has let everything go.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(block))
        with copies.copying(shape):
            copies.copy(gradient, array)
        gradient.handle, array.handle = array.handle, gradient.handle
        if not self._told:
            self._told = True
            _log.info("gradients lie in memory that aggregators on this host read from, which saves a copy")
        return True

    def _settle(self) -> None:
        """Frees the memory of gradients that are gone."""
        with self._lock:
            for address, lent in list(self._lent.items()):
                if lent.memory.is_returned():
                    del self._lent[address]
                    ctypes.pythonapi.Py_DecRef(ctypes.py_object(lent.block))


def share_gradients(net_or_params: Any, client: Client | None = None) -> None:
    """Places gradients in memory that aggregators on this host read from, so that no step copies them there.

        net.initialize()
        psum.mxnet.share_gradients(net)
        trainer = mx.gluon.Trainer(net.collect_params(), "sgd", kvstore="byteps")

    This applies to gradients in host memory of 64 KiB or more. Those that are made later follow: by deferred
    initialization, `cast`, `reset_ctx`, or another `grad_req`. `param.grad()` is the same NDArray as before, with the
    same content. Where no memory is shared, nothing changes.

    Call it before the training, not between the forward and the backward pass of a step: what was recorded before
    writes to the gradients' earlier memory. So do arrays that share the memory of a gradient and were made before, such
    as `param.grad().reshape(-1)`. Because psum cannot see those, it does not share gradients by itself.

    Do not write to a gradient after `pushpull` otherwise than with MXNet's operators, which wait for the sum.

    Args:
        net_or_params: A Block, the dictionary that its collect_params gives, or a list of Parameters.
        client: The worker's client. By default, the client that the process shares. It joins the job from the
            environment, and waits for the aggregators, if there is none yet.

    Raises:
        TypeError: It is something else.
        RuntimeError: Autograd is recording.
        PsumError: Joining the job failed.
    """
    parameters = _parameters_of(net_or_params)
    if mx.autograd.is_recording():
        raise RuntimeError(
            "share_gradients was called inside autograd.record(): what is recorded there would write to the gradients'"
            " earlier memory. Call it before"
        )
    shared = SharedGradients.of(shared_client() if client is None else client)
    moved = []
    for parameter in parameters:
        _chosen[parameter] = shared
        if shared.place(parameter):
            moved.append(parameter)
    if moved:
        _forget_static_graphs(moved)


def install() -> None:
    """Makes chosen parameters keep their gradients there whenever MXNet makes them new ones."""
    parameter = mx.gluon.Parameter
    for name in ("_init_grad", "cast"):
        setattr(parameter, name, _placing(getattr(parameter, name)))


def _placing(original: Callable[..., None]) -> Callable[..., None]:
    """Wraps a method of Parameter that makes gradients."""

    @functools.wraps(original)
    def make(self: Any, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        if _chosen and (shared := _chosen.get(self)) is not None:
            shared.place(self)

    return make


def _parameters_of(given: Any) -> Sequence[Any]:
    if isinstance(given, mx.gluon.Block):
        given = given.collect_params()
    # MXNet 1.9 has a class of its own for such dictionaries.
    parameters = list(given.values()) if hasattr(given, "values") else given
    if not isinstance(parameters, list | tuple):
        parameters = [parameters]
    for parameter in parameters:
        if not isinstance(parameter, mx.gluon.Parameter):
            raise TypeError(
                f"share_gradients of {type(parameter).__name__}: expected a Block, what its collect_params gives, or a"
                " list of Parameters"
            )
    return parameters


def _forget_static_graphs(parameters: Iterable[Any]) -> None:
    """Makes networks with static_shape build their graphs anew, which write to the memory that gradients had first."""
    moved = {id(parameter) for parameter in parameters}
    for block in gc.get_objects():
        if (
            isinstance(block, mx.gluon.HybridBlock)
            and ("static_shape", True) in block._flags
            and moved & {id(parameter) for parameter in block.collect_params().values()}
        ):
            block._clear_cached_op()


_chosen: "Final[weakref.WeakKeyDictionary[Any, SharedGradients]]" = weakref.WeakKeyDictionary()
_shared: Final = PerClient(SharedGradients)
