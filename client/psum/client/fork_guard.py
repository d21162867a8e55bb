"""Keeps a client in the process that made it."""

from psum.client.observe import process_name
from psum.wire.errors import ForkedError


class ForkGuard:
    """Remembers the process that makes a client. One that is forked from it cannot use the client's connections."""

    def __init__(self) -> None:
        self._pid = process_name.pid

    @property
    def forked(self) -> bool:
        """Whether this is another process."""
        return process_name.pid != self._pid

    def check(self) -> None:
        """Raises ForkedError in another process."""
        if process_name.pid != self._pid:
            raise ForkedError(
                f"this process was forked from pid {self._pid} and cannot use that process's psum client: the"
                " connections stay with the parent. Use the store in the parent only, or start workers as processes of"
                " their own"
            )
