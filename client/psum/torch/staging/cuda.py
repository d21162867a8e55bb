"""A GPU, by way of torch.cuda."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any, Final

import torch
from psum.torch.staging.cuda_calls import calls

_log = logging.getLogger(__name__)

#: cudaHostRegisterPortable: for all devices, not only the current one.
_PORTABLE: Final = 1


class CudaDevice:
    """One GPU of this process. Made by `of`.

    Args:
        place: The device, with its index.

    Attributes:
        down, up: See `Device`. Every user of the GPU in this process shares them.
    """

    def __init__(self, place: torch.device) -> None:
        self._place = place
        self.down: Any = torch.cuda.Stream(place)
        self.up: Any = torch.cuda.Stream(place)
        self._calls = calls()

    @classmethod
    def of(cls, place: torch.device) -> "CudaDevice":
        """Returns the GPU with this index."""
        with _making:
            device = _devices.get(place.index)
            if device is None:
                device = _devices[place.index] = cls(place)
            return device

    def __repr__(self) -> str:
        return f"<CudaDevice {self._place}>"

    def current_stream(self) -> Any:
        """See `Device`."""
        return torch.cuda.current_stream(self._place)

    @contextlib.contextmanager
    def use(self, stream: Any) -> Iterator[None]:
        """See `Device`."""
        # Unlike torch.cuda.stream, this does not go back to a GPU that the process does not use, such as the first one
        # in a new thread: CUDA would make a context there, which takes hundreds of megabytes.
        with torch.cuda.device(self._place):
            previous = torch.cuda.current_stream(self._place)
            torch.cuda.set_stream(stream)
            try:
                yield
            finally:
                torch.cuda.set_stream(previous)

    def record(self, stream: Any) -> Any:
        """See `Device`."""
        if torch.cuda.current_device() == self._place.index:
            return self._calls.record(stream)
        with torch.cuda.device(self._place):
            return self._calls.record(stream)

    def wait(self, stream: Any, event: Any) -> None:
        """See `Device`."""
        if torch.cuda.current_device() == self._place.index:
            self._calls.wait(stream, event)
        else:
            with torch.cuda.device(self._place):
                self._calls.wait(stream, event)

    def copy(self, stream: Any, target: torch.Tensor, source: torch.Tensor, *, pinned: bool) -> None:
        """See `Device`."""
        self._calls.copy(stream, target, source, pinned=pinned)

    def keep(self, tensor: torch.Tensor, stream: Any) -> None:
        """See `Device`."""
        tensor.record_stream(stream)

    def pin(self, address: int, size: int) -> bool:
        """See `Device`."""
        # The current device must be one that the process uses: CUDA would make a context on any other one.
        with torch.cuda.device(self._place):
            code = int(torch.cuda.cudart().cudaHostRegister(address, size, _PORTABLE))
        if code:
            _log.warning("%d bytes of host memory cannot be pinned (CUDA error %d): copies are slower", size, code)
        return not code

    def unpin(self, address: int) -> None:
        """See `Device`."""
        with torch.cuda.device(self._place):
            torch.cuda.cudart().cudaHostUnregister(address)


_devices: Final[dict[int, CudaDevice]] = {}
_making: Final = threading.RLock()
