"""The memory that an aggregator may use for sums, shared by all jobs."""


class Budget:
    """Bytes that are reserved for keys when they are declared, so that no later round lacks memory.

    A shard of n bytes needs n bytes for each worker's contribution and n for its result: while a round waits for its
    slowest rank, all others may have contributed.

    Args:
        limit_bytes: The most that may be reserved; 0: no limit.
    """

    def __init__(self, limit_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self.reserved_bytes = 0
        """Bytes that are reserved now."""

    def __repr__(self) -> str:
        return f"<Budget {self.reserved_bytes}/{self.limit_bytes or 'unlimited'}>"

    @property
    def free_bytes(self) -> int:
        """Bytes that may still be reserved. Only meaningful if there is a limit."""
        return self.limit_bytes - self.reserved_bytes

    def reserve(self, size: int) -> bool:
        """Reserves bytes. Returns False, and reserves nothing, if the limit would be exceeded."""
        if self.limit_bytes and size > self.free_bytes:
            return False
        self.reserved_bytes += size
        return True

    def take(self, size: int) -> None:
        """Reserves bytes, even past the limit."""
        self.reserved_bytes += size

    def release(self, size: int) -> None:
        """Returns reserved bytes."""
        assert size <= self.reserved_bytes
        self.reserved_bytes -= size
