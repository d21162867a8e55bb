"""Which planes a worker can use, given how many file descriptors this process may still open."""

import dataclasses
from collections.abc import Sequence
from typing import Final

from psum.client.settings import Settings
from psum.planes import Plane, offered_by
from psum.runtime import lacks_descriptors, open_descriptors
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ConnectError

#: What the event loop and gRPC need for themselves. gRPC ends the process if it cannot open one of its own.
_OWN: Final = 18

#: What staging memory takes.
_STAGING: Final = 2


@dataclasses.dataclass(frozen=True, slots=True)
class UsablePlanes:
    """The planes that a worker offers.

    Attributes:
        planes: The planes, the best first.
        lack: Why they are fewer than the settings say, None if they are not.
        staging: Whether the worker has staging memory, if it shares memory.
    """

    planes: tuple[Plane, ...]
    lack: str | None = None
    staging: bool = False

    @property
    def shares_memory(self) -> bool:
        """Whether memory is shared with aggregators on this host."""
        return any(plane.kind == pb.PLANE_SHM for plane in self.planes)


def usable_planes(
    settings: Settings, addresses: Sequence[str], *, staging: bool = False, before: int | None = None
) -> UsablePlanes:
    """The best planes for which there are enough descriptors on all connections. To be called before any is opened.

    Args:
        settings: The worker's settings.
        addresses: What the worker connects to.
        staging: Whether the worker has staging memory if it shares memory. With few descriptors it does without, rather
            than use a slower plane.
        before: How many descriptors were open before the worker opened its first one; None: it has opened none.

    Raises:
        ConnectError: There are too few descriptors for any plane.
    """
    count = len(addresses)
    usable = UsablePlanes(offered_by(settings.plane))
    if not count:
        return usable
    # Counted here and not before: gRPC closes what it does not use any more at some later moment.
    opened = 0 if before is None else max(0, open_descriptors() - before)
    needed = _needed(usable, count)
    if staging and usable.shares_memory and lacks_descriptors(needed + _STAGING - opened) is None:
        return dataclasses.replace(usable, staging=True)
    lack = lacks_descriptors(needed - opened)
    if lack is None:
        return usable
    for start in range(1, len(usable.planes)):
        fewer = UsablePlanes(usable.planes[start:])
        if lacks_descriptors(_needed(fewer, count) - opened) is None:
            plane = fewer.planes[0].name
            return UsablePlanes(
                fewer.planes,
                f"rank {settings.rank} uses plane {plane}, which is slower: plane {settings.plane} would need {needed}"
                f" file descriptors, and {lack}",
            )
    raise ConnectError(
        f"rank {settings.rank} cannot join its job, for which it needs {_OWN + count} file descriptors: {lack}",
        address=addresses[0],
    )


def _needed(usable: UsablePlanes, connections: int) -> int:
    return _OWN + connections * max(plane.descriptors for plane in usable.planes)
