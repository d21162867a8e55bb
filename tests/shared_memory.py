"""Directories in memory, for the files through which processes share memory."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from psum.planes import DEFAULT_DIRECTORY


@contextlib.contextmanager
def emptied_directory() -> Iterator[pathlib.Path]:
    """Makes a directory in memory for the block, which must leave it empty: tests at the same time have others."""
    with tempfile.TemporaryDirectory(dir=DEFAULT_DIRECTORY) as name:
        yield pathlib.Path(name)
        assert list(pathlib.Path(name).iterdir()) == []
