"""How payloads cross between a worker and an aggregator: in messages, in shared memory, or beside the messages.

It may import runtime, v1 and wire. Begin with plane.py, which says what a plane promises; inline.py, direct.py and
shm.py have both ends of one plane each, and table.py lists them.
"""

from psum.planes.data_connection import (
    SECRET_BYTES,
    DataConnection,
)
from psum.planes.errors import (
    PlaneError,
)
from psum.planes.growing_segment import (
    Block,
    GrowingSegment,
)
from psum.planes.inline import (
    InlineAggregator,
    InlineWorker,
)
from psum.planes.mapped_sums import (
    Loan,
    MappedSums,
)
from psum.planes.plane import (
    AggregatorPlane,
    Location,
    Offer,
    WorkerPlane,
    WorkerTerms,
)
from psum.planes.segment import (
    DEFAULT_DIRECTORY,
    Segment,
    SegmentError,
    sweep,
)
from psum.planes.send_limit import (
    usual_share,
)
from psum.planes.shm import (
    ARENA_DESCRIPTORS,
    Arena,
    is_lent,
)
from psum.planes.slots import (
    Slots,
)
from psum.planes.space_limit import (
    DEFAULT_LIMIT,
    Limit,
    shortage,
    turn,
)
from psum.planes.table import (
    CHOICES,
    NAMES,
    PLANES,
    Plane,
    offered_by,
)

__all__ = [
    "ARENA_DESCRIPTORS",
    "CHOICES",
    "DEFAULT_DIRECTORY",
    "DEFAULT_LIMIT",
    "NAMES",
    "PLANES",
    "SECRET_BYTES",
    "AggregatorPlane",
    "Arena",
    "Block",
    "DataConnection",
    "GrowingSegment",
    "InlineAggregator",
    "InlineWorker",
    "Limit",
    "Loan",
    "Location",
    "MappedSums",
    "Offer",
    "Plane",
    "PlaneError",
    "Segment",
    "SegmentError",
    "Slots",
    "WorkerPlane",
    "WorkerTerms",
    "is_lent",
    "offered_by",
    "shortage",
    "sweep",
    "turn",
    "usual_share",
]
