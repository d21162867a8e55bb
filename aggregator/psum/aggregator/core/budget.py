"""The memory that an aggregator may use for sums, shared by all jobs."""


class Budget:
    """Bytes that are set aside for keys when they are declared, so that no round fails for want of memory later.

    A shard of n bytes takes n for each worker's contribution, and n for its result: while a round waits for its
    slowest rank, the others may all have contributed.

    Args:
        limit_bytes: The most that may be set aside; 0: no limit.
    """

    def __init__(self, limit_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self.reserved_bytes = 0
        """What is set aside now."""

    def __repr__(self) -> str:
        return f"<Budget {self.reserved_bytes}/{self.limit_bytes or 'unlimited'}>"

    @property
    def free_bytes(self) -> int:
        """What may still be set aside, where there is a limit."""
        return self.limit_bytes - self.reserved_bytes

    def reserve(self, size: int) -> bool:
        """Sets bytes aside; returns False, and sets nothing aside, where they are not to be had."""
        if self.limit_bytes and size > self.free_bytes:
            return False
        self.reserved_bytes += size
        return True

    def release(self, size: int) -> None:
        """Bytes are needed no more."""
        assert size <= self.reserved_bytes
        self.reserved_bytes -= size
