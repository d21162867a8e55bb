"""Files that are read again when they change, as certificates and secrets that are renewed under a running process."""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from psum.runtime.file_descriptors import lacks_descriptors
from psum.wire.errors import ConfigurationError

_log = logging.getLogger(__name__)

T = TypeVar("T")
_Stamp = tuple[tuple[int, int, int], ...]

#: How often files that change while they are read are read again before what they say is taken as it is.
_ATTEMPTS: Final = 5


class WatchedFiles(Generic[T]):
    """What some files say. Its methods may be called from any thread.

    Args:
        paths: The files.
        read: Reads and checks them all; raises ConfigurationError.

    Raises:
        ConfigurationError: They cannot be used.
    """

    def __init__(self, paths: Sequence[str], read: Callable[[], T]) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._lock = threading.Lock()
        self._stamp, self._content = self._load()

    def get(self) -> T:
        """What the files say now. Where they have changed and cannot be used, it is what they said before; the log has
        an error then."""
        with self._lock:
            try:
                stamp = self._stamps()
                if stamp != self._stamp:
                    # Remembered first, so that a mistake is reported once.
                    self._stamp = stamp
                    self._stamp, self._content = self._load()
                    _log.info("read again, since they have changed: %s", ", ".join(self._paths))
            except ConfigurationError as error:
                if lacks_descriptors(1) is not None:
                    # No mistake of theirs: they are to be read again as soon as that is over.
                    self._stamp = ()
                _log.error(
                    "files have changed and cannot be used; going on with what they said before: %s",
                    "; ".join(error.mistakes),
                )
            return self._content

    def _load(self) -> tuple[_Stamp, T]:
        for _ in range(_ATTEMPTS):
            stamp = self._stamps()
            content = self._read()
            if self._stamps() == stamp:
                # Else some are of before a renewal, others of after it.
                break
        return stamp, content

    def _stamps(self) -> _Stamp:
        try:
            stats = [os.stat(path) for path in self._paths]
        except OSError:
            # The reader says it better.
            return ()
        return tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in stats)


def read_file(path: str, what: str) -> bytes:
    """The content of a file that the settings name.

    Raises:
        ConfigurationError: It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigurationError([f"{what}={path}: cannot be read: {error.strerror or error}"]) from None
