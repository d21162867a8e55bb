"""What can be done with a key."""

import enum

from psum.v1 import aggregator_pb2 as pb


class Operation(enum.IntEnum):
    """What is done with a key; the values are those of the protocol."""

    # An Enum's own hash is slow, and each reservation looks up its key by operation.
    __hash__ = int.__hash__

    SUM = pb.OPERATION_SUM
    BROADCAST = pb.OPERATION_BROADCAST
