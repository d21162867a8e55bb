"""What both ends of the wire share: framing, element types, addresses, limits, settings, allocator, TLS, processors.

The exceptions are in psum.wire.errors.
"""

from psum.wire import errors
from psum.wire._address import canonical, is_local, join_address, parse_address, parse_destination, split_address
from psum.wire._binding import cannot_listen
from psum.wire._channel import (
    BATCH_BYTES,
    BESIDE_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_PARTITION_BYTES,
    NO_PROXY,
    PROTOCOL_VERSION,
    SHARED_BYTES,
    grpc_options,
)
from psum.wire._descriptors import (
    HOW_TO_RAISE,
    descriptor_limit,
    lack_of_descriptors,
    lacks_descriptors,
    open_descriptors,
    raise_descriptor_limit,
)
from psum.wire._elements import ElementType
from psum.wire._files import WatchedFiles, read_file
from psum.wire._framing import PAYLOAD_ALIGNMENT_BYTES, allocate, decode, encode
from psum.wire._growing import Block, GrowingSegment
from psum.wire._logging import JsonFormatter, TextFormatter
from psum.wire._malloc import keep_large_blocks
from psum.wire._metrics import ROUND_BOUNDS_SECONDS, Histogram, Metric
from psum.wire._pipe import SECRET_BYTES, Pipe
from psum.wire._processors import processors
from psum.wire._race import first_to_end
from psum.wire._ranges import parse_destinations
from psum.wire._report import report_of
from psum.wire._room import DEFAULT_LIMIT, Limit
from psum.wire._rounds import MAX_SHARDS_PER_PAYLOAD, ShardRound, sizes_beside, split, to_columns, to_rows
from psum.wire._segment import DEFAULT_DIRECTORY, Segment, SegmentError, sweep
from psum.wire._settings import (
    Declaration,
    choice,
    declarations,
    duration,
    integer,
    items,
    load,
    setting,
    size,
)
from psum.wire._settings import Settings as BaseSettings
from psum.wire._slots import Slots
from psum.wire._titles import captioned, titled
from psum.wire._tls import Pem, TlsFiles
from psum.wire._variables import VARIABLES, similar, unknown_variables
from psum.wire._waiting import Waiters

__all__ = [
    "BATCH_BYTES",
    "BESIDE_BYTES",
    "DEFAULT_DIRECTORY",
    "DEFAULT_LIMIT",
    "HOW_TO_RAISE",
    "MAX_MESSAGE_BYTES",
    "MAX_PARTITION_BYTES",
    "MAX_SHARDS_PER_PAYLOAD",
    "NO_PROXY",
    "PAYLOAD_ALIGNMENT_BYTES",
    "PROTOCOL_VERSION",
    "ROUND_BOUNDS_SECONDS",
    "SECRET_BYTES",
    "SHARED_BYTES",
    "VARIABLES",
    "BaseSettings",
    "Block",
    "Declaration",
    "ElementType",
    "GrowingSegment",
    "Histogram",
    "JsonFormatter",
    "Limit",
    "Metric",
    "Pem",
    "Pipe",
    "Segment",
    "SegmentError",
    "ShardRound",
    "Slots",
    "TextFormatter",
    "TlsFiles",
    "Waiters",
    "WatchedFiles",
    "allocate",
    "cannot_listen",
    "canonical",
    "captioned",
    "choice",
    "declarations",
    "decode",
    "descriptor_limit",
    "duration",
    "encode",
    "errors",
    "first_to_end",
    "grpc_options",
    "integer",
    "is_local",
    "items",
    "join_address",
    "keep_large_blocks",
    "lack_of_descriptors",
    "lacks_descriptors",
    "load",
    "open_descriptors",
    "parse_address",
    "parse_destination",
    "parse_destinations",
    "processors",
    "raise_descriptor_limit",
    "read_file",
    "report_of",
    "setting",
    "similar",
    "size",
    "sizes_beside",
    "split",
    "split_address",
    "sweep",
    "titled",
    "to_columns",
    "to_rows",
    "unknown_variables",
]
