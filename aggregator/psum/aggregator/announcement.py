"""The file in which an aggregator announces its addresses."""

import os
import pathlib
from collections.abc import Iterable

from psum.wire.errors import ConfigurationError


def announce(path: pathlib.Path, addresses: Iterable[str]) -> None:
    """Writes addresses to a file, one on each line, so that a reader sees all of them or no file.

    Raises:
        ConfigurationError: It cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text("".join(f"{address}\n" for address in addresses))
        part.rename(path)
    except OSError as error:
        raise ConfigurationError([f"announce={path}: cannot be written: {error.strerror}"]) from None
