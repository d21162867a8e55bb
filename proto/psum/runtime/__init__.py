"""What every process of psum needs: settings, logging, TLS files, metrics, file descriptors, waiting, text for people.

It may import wire. Begin with settings.py. The names of all environment variables are in variables.py.
"""

from psum.runtime.address_ranges import (
    parse_destinations,
)
from psum.runtime.file_descriptors import (
    HOW_TO_RAISE,
    descriptor_limit,
    lack_of_descriptors,
    lacks_descriptors,
    open_descriptors,
    raise_descriptor_limit,
)
from psum.runtime.first_completed import (
    first_completed,
)
from psum.runtime.listen_errors import (
    cannot_listen,
    listen_error,
)
from psum.runtime.logging import (
    JsonFormatter,
    TextFormatter,
)
from psum.runtime.malloc import (
    keep_large_blocks,
)
from psum.runtime.metrics import (
    ROUND_BOUNDS_SECONDS,
    Histogram,
    Metric,
)
from psum.runtime.parsers import (
    choice,
    duration,
    integer,
    items,
    size,
    switch,
)
from psum.runtime.processors import (
    processors,
    sensible_processes,
)
from psum.runtime.settings import (
    Declaration,
    declarations,
    load,
    replaced,
    setting,
)
from psum.runtime.settings import (
    Settings as BaseSettings,
)
from psum.runtime.titles import (
    captioned,
    rank_names,
    titled,
)
from psum.runtime.tls_files import (
    Pem,
    TlsFiles,
)
from psum.runtime.variables import (
    VARIABLES,
    similar,
    unknown_variables,
)
from psum.runtime.waiters import (
    Waiters,
)
from psum.runtime.watched_files import (
    WatchedFiles,
    read_file,
)

__all__ = [
    "HOW_TO_RAISE",
    "ROUND_BOUNDS_SECONDS",
    "VARIABLES",
    "BaseSettings",
    "Declaration",
    "Histogram",
    "JsonFormatter",
    "Metric",
    "Pem",
    "TextFormatter",
    "TlsFiles",
    "Waiters",
    "WatchedFiles",
    "cannot_listen",
    "captioned",
    "choice",
    "declarations",
    "descriptor_limit",
    "duration",
    "first_completed",
    "integer",
    "items",
    "keep_large_blocks",
    "lack_of_descriptors",
    "lacks_descriptors",
    "listen_error",
    "load",
    "open_descriptors",
    "parse_destinations",
    "processors",
    "raise_descriptor_limit",
    "rank_names",
    "read_file",
    "replaced",
    "sensible_processes",
    "setting",
    "similar",
    "size",
    "switch",
    "titled",
    "unknown_variables",
]
