"""What crosses the wire: messages and their framing, rounds as columns, element types, addresses, and errors.

It may import the generated protocol (psum.v1) and nothing else of psum. Begin with framing.py, then rounds.py. Every
exception that psum raises on purpose is in errors.py.
"""

from psum.wire import errors
from psum.wire.addresses import (
    canonical,
    is_local,
    join_address,
    parse_address,
    parse_destination,
    split_address,
)
from psum.wire.channel import (
    BATCH_BYTES,
    DATA_CONNECTION_BROKE,
    FAR_BATCH_BYTES,
    LARGE_PAYLOAD_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_PARTITION_BYTES,
    MAX_WORKERS,
    NO_PROXY,
    OUTSIDE_BATCH_BYTES,
    PLACEMENT_BY_ROLES,
    PLACEMENT_BY_WEIGHTS,
    PROTOCOL_VERSION,
    grpc_options,
)
from psum.wire.codecs import (
    CODECS,
    IDENTITY,
    Codec,
    codec_of,
)
from psum.wire.elements import (
    ElementType,
    NumberKind,
)
from psum.wire.framing import (
    PAYLOAD_ALIGNMENT_BYTES,
    allocate,
    decode,
    encode,
)
from psum.wire.rounds import (
    MAX_SHARDS_PER_PAYLOAD,
    ShardRound,
    following_sizes,
    from_columns,
    read_columns,
    split,
    spread,
    to_columns,
    to_rows,
)
from psum.wire.state_report import (
    report_of,
)

__all__ = [
    "BATCH_BYTES",
    "CODECS",
    "DATA_CONNECTION_BROKE",
    "FAR_BATCH_BYTES",
    "IDENTITY",
    "LARGE_PAYLOAD_BYTES",
    "MAX_MESSAGE_BYTES",
    "MAX_PARTITION_BYTES",
    "MAX_SHARDS_PER_PAYLOAD",
    "MAX_WORKERS",
    "NO_PROXY",
    "OUTSIDE_BATCH_BYTES",
    "PAYLOAD_ALIGNMENT_BYTES",
    "PLACEMENT_BY_ROLES",
    "PLACEMENT_BY_WEIGHTS",
    "PROTOCOL_VERSION",
    "Codec",
    "ElementType",
    "NumberKind",
    "ShardRound",
    "allocate",
    "canonical",
    "codec_of",
    "decode",
    "encode",
    "errors",
    "following_sizes",
    "from_columns",
    "grpc_options",
    "is_local",
    "join_address",
    "parse_address",
    "parse_destination",
    "read_columns",
    "report_of",
    "split",
    "split_address",
    "spread",
    "to_columns",
    "to_rows",
]
