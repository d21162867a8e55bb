"""How payloads cross: within gRPC messages, over a data connection, or in memory shared by processes of one host.

It may import wire and runtime. Begin with data_connection.py for other hosts, and segment.py for the same host.
"""

from psum.planes.data_connection import (
    SECRET_BYTES,
    DataConnection,
)
from psum.planes.growing_segment import (
    Block,
    GrowingSegment,
)
from psum.planes.segment import (
    DEFAULT_DIRECTORY,
    Segment,
    SegmentError,
    sweep,
)
from psum.planes.slots import (
    Slots,
)
from psum.planes.space_limit import (
    DEFAULT_LIMIT,
    Limit,
)

__all__ = [
    "DEFAULT_DIRECTORY",
    "DEFAULT_LIMIT",
    "SECRET_BYTES",
    "Block",
    "DataConnection",
    "GrowingSegment",
    "Limit",
    "Segment",
    "SegmentError",
    "Slots",
    "sweep",
]
