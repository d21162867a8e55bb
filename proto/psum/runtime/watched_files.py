"""Files that are read again when they change, such as certificates and secrets that are renewed at run time."""

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

#: How often files that change during reading are read again before the last content counts.
_ATTEMPTS: Final = 5


class WatchedFiles(Generic[T]):
    """The content of files. Any thread may call its methods.

    Args:
        paths: The files.
        read: Reads and checks all files. Raises ConfigurationError.

    Raises:
        ConfigurationError: The files cannot be used.
    """

    def __init__(self, paths: Sequence[str], read: Callable[[], T]) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._lock = threading.Lock()
        self._stamp, self._content = self._load()

    def get(self) -> T:
        """Return the present content. If the files have changed and cannot be used, log an error and return the
        previous content."""
        with self._lock:
            try:
                stamp = self._stamps()
                if stamp != self._stamp:
                    # Remember the stamp first, so that a mistake is reported once only.
                    self._stamp = stamp
                    self._stamp, self._content = self._load()
                    _log.info("files have changed and were read again: %s", ", ".join(self._paths))
            except ConfigurationError as error:
                if lacks_descriptors(1) is not None:
                    # The files may be fine. Read them again as soon as there are descriptors.
                    self._stamp = ()
                _log.error(
                    "files have changed and cannot be used; keeping their previous content: %s",
                    "; ".join(error.mistakes),
                )
            return self._content

    def _load(self) -> tuple[_Stamp, T]:
        for _ in range(_ATTEMPTS):
            stamp = self._stamps()
            content = self._read()
            if self._stamps() == stamp:
                # Otherwise some may be from before a renewal, and others from after it.
                break
        return stamp, content

    def _stamps(self) -> _Stamp:
        try:
            stats = [os.stat(path) for path in self._paths]
        except OSError:
            # The reader reports this error with more detail.
            return ()
        return tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in stats)


def read_file(path: str, what: str) -> bytes:
    """Return the content of a file.

    Args:
        path: The file.
        what: The name of its setting, for errors.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigurationError([f"{what}={path}: cannot be read: {error.strerror or error}"]) from None
