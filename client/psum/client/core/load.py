"""What a worker has under way."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """What is under way.

    Attributes:
        operations: Operations that run and have no result.
        waiting_shards: Shards that wait to be sent.
        under_way_bytes: Bytes that count against the credit.
    """

    operations: int
    waiting_shards: int
    under_way_bytes: int
