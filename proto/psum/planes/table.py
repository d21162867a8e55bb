"""Which planes there are. A new plane is a file such as direct.py, a row here, and a value in the protocol's Plane."""

from collections.abc import Callable
from typing import Final, NamedTuple

from psum.planes import direct, inline, shm
from psum.planes.plane import AggregatorPlane, Host, Offer, WorkerTerms
from psum.v1 import aggregator_pb2 as pb


class Plane(NamedTuple):
    """One plane.

    Attributes:
        kind: Its value in the protocol.
        name: Its name in settings and reports.
        descriptors: How many file descriptors a worker needs for each aggregator, the stream's included.
        offer: Makes the worker's offer to the aggregator at an address; None: it is of no use there.
        needs: How many file descriptors an aggregator needs to accept a worker, given its hello.
        accept: Makes the aggregator's end, given a worker's hello, and completes the welcome; None: not here.
    """

    kind: pb.Plane.ValueType
    name: str
    descriptors: int
    offer: Callable[[str, WorkerTerms], Offer | None]
    needs: Callable[[pb.Hello, Host], int]
    accept: Callable[[pb.Hello, pb.Welcome, Host], AggregatorPlane | None]


#: All planes, the fastest first. The last one always works.
PLANES: Final = (
    # A segment and the sums with a file or a mapping each; the stream, and a data connection.
    Plane(pb.PLANE_SHM, "shm", 5, shm.offer, shm.needs, shm.accept),
    # The stream, and a data connection.
    Plane(pb.PLANE_DIRECT, "direct", 2, direct.offer, direct.needs, direct.accept),
    Plane(pb.PLANE_INLINE, "inline", 1, inline.offer, inline.needs, inline.accept),
)

#: What PSUM_PLANE and --plane may be.
CHOICES: Final = ("auto", *(plane.name for plane in reversed(PLANES)))

NAMES: Final = {plane.kind: plane.name for plane in PLANES}


def offered_by(setting: str) -> tuple[Plane, ...]:
    """The planes that a worker offers with this value of PSUM_PLANE: all with auto, else the one named and inline."""
    return tuple(plane for plane in PLANES if setting in ("auto", plane.name) or plane is PLANES[-1])
