"""The memory that a client shares with aggregators on its host."""

import contextlib
import logging
from collections.abc import Iterator

from psum.client.settings import Settings
from psum.planes import DEFAULT_DIRECTORY, Block, GrowingSegment, SegmentError, shortage, turn

_log = logging.getLogger(__name__)


class ClientMemory:
    """Staging memory: buffers of the caller that aggregators read from without a copy.

    Args:
        settings: The worker's settings.
        staging: Whether to have staging memory.
    """

    def __init__(self, settings: Settings, *, staging: bool) -> None:
        self._settings = settings
        self._wants_staging = staging
        self._staging: GrowingSegment | None = None

    def open(self) -> None:
        """Makes the staging memory, if it is wanted and possible."""
        if self._wants_staging:
            with contextlib.suppress(SegmentError):
                self._staging = GrowingSegment(self._settings.shm_directory, _warn_of_copies, self._settings.shm_limit)

    def allocate(self, size: int) -> Block | None:
        """A block of staging memory of size bytes; None if there is none. From any thread."""
        return self._staging.allocate(size) if self._staging is not None and size else None

    def free(self, offset: int, size: int) -> None:
        """Frees a block of staging memory. From any thread and any finalizer."""
        if self._staging is not None:
            self._staging.free(offset, size)

    def separate(self, offset: int, size: int) -> bool:
        """Separates a block of staging memory for this process. See GrowingSegment.separate."""
        return self._staging is not None and self._staging.separate(offset, size)

    @contextlib.contextmanager
    def room(self, size: int) -> Iterator[str | None]:
        """See Client.room."""
        with turn(DEFAULT_DIRECTORY):
            yield shortage(DEFAULT_DIRECTORY, size, self._settings.shm_limit)

    @property
    def staging(self) -> GrowingSegment | None:
        """The staging memory; None if there is none."""
        return self._staging

    def unlink(self) -> None:
        """Removes the staging memory's name, for a process that is about to end: the memory then ends with it."""
        if self._staging is not None:
            self._staging.unlink()

    def close(self) -> None:
        """Closes the staging memory."""
        if self._staging is not None:
            self._staging.close()


def _warn_of_copies(error: SegmentError) -> None:
    _log.warning("what is pushed from further buffers is copied once more: %s", error)
