"""What the sums of a store were like, so that the next sum of the same array needs no checks."""

from typing import Any

from psum.client import ElementType, Ticket
from psum.mxnet.arguments import Arrays
from psum.mxnet.compat import mx
from psum.mxnet.engine.interface import PRIORITY_LIMIT
from psum.mxnet.in_place_sum import InPlaceSum
from psum.mxnet.staging.device_pipeline import DevicePipeline

_NDArray = mx.nd.NDArray


def only_array(value: Any, out: Any) -> Any:
    """Returns the plain NDArray that is summed in place, if it is the only one; None otherwise."""
    array = value[0] if type(value) is list and len(value) == 1 else value
    if type(array) is not _NDArray:
        return None
    if out is not None and out is not value:
        other = out[0] if type(out) is list and len(out) == 1 else out
        if other is not array:
            return None
    return array


class KnownSum:
    """The last sum of a key, of one array in place.

    It keeps the array's handle and not the array. A handle is one array of MXNet's for ever, whose shape, type and
    device do not change once they are known. An NDArray that gets the handle of another one is looked at again.

    Args:
        ticket: The operation.
        name: The key's name.
        label: The key's label.
        array: The array.
        arrays: What was found out about it.
        pipeline: What moves it; None if it is used where it is.
        device: The number of its device.

    Attributes:
        in_place: What sums it where it is; None until then. It may be busy with an earlier sum.
    """

    __slots__ = (
        "_element_type",
        "_handle",
        "_nbytes",
        "_shape",
        "device",
        "in_place",
        "key",
        "label",
        "name",
        "pipeline",
    )

    def __init__(
        self,
        ticket: Ticket,
        name: str,
        label: str,
        array: Any,
        arrays: Arrays,
        pipeline: DevicePipeline | None,
        device: int,
    ) -> None:
        self.key = ticket.key
        self.name = name
        self.label = label
        self.pipeline = pipeline
        self.device = device
        self.in_place: InPlaceSum | None = None
        self._handle = array.handle
        self._shape: tuple[int, ...] = arrays.shape
        self._element_type: ElementType = arrays.element_type
        self._nbytes: int = arrays.nbytes

    def fits(self, array: Any, priority: Any) -> bool:
        """Whether an array is the one that is known, and a priority needs no check either."""
        return array.handle is self._handle and type(priority) is int and -PRIORITY_LIMIT <= priority <= PRIORITY_LIMIT

    def arrays(self, array: Any) -> Arrays:
        """Returns what is known of the array, which fits."""
        return Arrays([array], self._shape, self._element_type, self._nbytes)
