"""The life of a client: joining its job, leaving it, and the end of all that it uses, so that nothing is lost."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Final

from psum.client import termination
from psum.client.client_loop import ClientLoop
from psum.client.memory import ClientMemory
from psum.client.shared_arrays import SharedArrays
from psum.runtime import keep_large_blocks
from psum.wire.errors import ClosedError, FaultError

_log = logging.getLogger(__name__)

#: How much longer than its timeout `close` waits for the client's thread.
_CLOSE_MARGIN_SECONDS: Final = 5.0

#: The least time that the aggregators get to answer a goodbye.
_LEAST_LEAVE_SECONDS: Final = 0.5


class Lifecycle:
    """Joins the job once, and leaves it once.

    Args:
        owner: The client, which SIGTERM ends too.
        loop: Its event loop, and what lives on it.
        memory: The memory that it shares with aggregators.
        arrays: The arrays in that memory.

    Attributes:
        closed: Whether the client has left the job, or could not join it. Nothing is left to its thread any more.
    """

    def __init__(
        self, owner: termination.Parting, loop: ClientLoop, memory: ClientMemory, arrays: SharedArrays
    ) -> None:
        self.closed = False
        self._owner = owner
        self._loop = loop
        self._memory = memory
        self._arrays = arrays
        # Reentrant: a signal's handler may close the client while the main thread does so.
        self._closing = threading.RLock()
        self._is_closing = False

    def join(self, warnings: Iterable[str], *, waits_for_rank: bool) -> None:
        """See Client.connect. If that fails, everything is closed.

        Args:
            warnings: What to warn of first, in the log.
            waits_for_rank: Whether to wait while another process has the rank.
        """
        loop = self._loop
        loop.telemetry.set_up()
        # SIGTERM must be handled while the worker joins too.
        termination.watch(self._owner)
        for text in warnings:
            _log.warning("%s", text)
        try:
            loop.telemetry.serve_metrics()
            if loop.thread is not None:
                keep_large_blocks(one_arena=False)
                self._memory.open()
                loop.thread.run(loop.join(self._memory.staging, waits_for_rank=waits_for_rank))
        except BaseException as error:
            loop.telemetry.report_fault(error)
            self._detach()
            if loop.thread is not None:
                loop.thread.stop()
            loop.telemetry.close()
            self._memory.close()
            raise

    def part(self, fault: FaultError) -> "Future[None] | None":
        """See Client.part. In the process that has joined."""
        if self._loop.thread is None or self.closed:
            return None
        self._memory.unlink()
        return asyncio.run_coroutine_threadsafe(self._loop.membership.leave_early(fault), self._loop.thread.loop)

    def close(self, timeout: float) -> None:
        """See Client.close. Not in the client's own thread."""
        with self._closing:
            if self.closed or self._is_closing:
                return
            self._is_closing = True
            # The others may begin it much later, or never.
            self._loop.drop_upcoming()
            try:
                self._leave(timeout)
            finally:
                self._is_closing = False

    def _leave(self, timeout: float) -> None:
        loop, deadline = self._loop, time.monotonic() + timeout
        loop.outstanding.wait(timeout)
        try:
            if loop.thread is not None:
                try:
                    patience = max(_LEAST_LEAVE_SECONDS, deadline - time.monotonic())
                    loop.thread.run(loop.leave(patience), timeout + _CLOSE_MARGIN_SECONDS)
                finally:
                    self._detach()
                    loop.thread.stop()
        finally:
            # Even if leaving failed: nobody else would complete the outstanding operations.
            self._detach()
            loop.telemetry.close()
            loop.session.fail(ClosedError("the client was closed before the operation was complete"))
            # Operations that came after the thread had emptied the inbox for the last time.
            loop.outstanding.empty_inbox()
            # After the operations have failed: what they pushed is separated from the memory first.
            self._arrays.close()
            self._memory.close()
            loop.telemetry.write_timeline()

    def _detach(self) -> None:
        """From now on nothing is left to the thread."""
        self.closed = True
        termination.forget(self._owner)
        self._loop.outstanding.detach()
