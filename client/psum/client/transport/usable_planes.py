"""How payloads may cross, given how many file descriptors this process can still have."""

import dataclasses
from typing import Final

from psum.client.settings import Settings
from psum.runtime import lacks_descriptors
from psum.wire.errors import ConnectError

#: What the event loop and gRPC have for themselves. Where gRPC lacks one of its own, it ends the process.
_OWN: Final = 18

#: What each aggregator takes: its stream; a data connection; and, where memory is shared, three for that.
_EACH: Final = {"auto": 5, "shm": 5, "direct": 2, "inline": 1}

#: What memory from which a GPU's gradients are read takes.
_STAGING: Final = 2

#: What may be used instead of what the settings ask for.
_INSTEAD: Final = {"auto": ("direct", "inline"), "shm": ("inline",), "direct": ("inline",), "inline": ()}


@dataclasses.dataclass(frozen=True, slots=True)
class UsablePlanes:
    """What a worker goes on with.

    Attributes:
        plane: As the setting of that name.
        lack: Why it is another one than the settings say, None where it is not.
    """

    plane: str
    lack: str | None = None

    @property
    def shares_memory(self) -> bool:
        """Whether memory is to be shared with aggregators on this host."""
        return self.plane in ("auto", "shm")


def means_for(settings: Settings, *, staging: bool = False) -> UsablePlanes:
    """The best that there are enough descriptors for, at all aggregators. To be asked before anything is opened.

    Args:
        settings: The worker's.
        staging: Whether it is to have staging memory, where it shares memory.

    Raises:
        ConnectError: There are too few for any.
    """
    count = len(settings.aggregators)
    if not count:
        return UsablePlanes(settings.plane)
    needed = _OWN + count * _EACH[settings.plane] + _STAGING * (staging and settings.plane in ("auto", "shm"))
    lack = lacks_descriptors(needed)
    if lack is None:
        return UsablePlanes(settings.plane)
    for plane in _INSTEAD[settings.plane]:
        if lacks_descriptors(_OWN + count * _EACH[plane]) is None:
            return UsablePlanes(
                plane,
                f"rank {settings.rank} uses plane {plane}, which is slower: plane {settings.plane} would need {needed}"
                f" file descriptors, and {lack}",
            )
    raise ConnectError(
        f"rank {settings.rank} cannot join its job, for which it needs {_OWN + count} file descriptors: {lack}",
        address=settings.aggregators[0],
    )
