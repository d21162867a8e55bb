"""An event loop in its own thread."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")

#: How long tasks may take to end by themselves after the loop was stopped.
_LAST_TASKS_SECONDS = 0.25


class LoopThread:
    """A uvloop that runs in a background thread from construction to `stop`. It does not touch the caller's loop."""

    def __init__(self, name: str) -> None:
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Runs a coroutine there and waits for its result. If the wait ends in another way, the coroutine is cancelled.

        Raises:
            TimeoutError: It took longer.
        """
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(timeout)
        except BaseException:
            # A time-out, Ctrl-C, or an error of the program's signal handler. No effect on a coroutine that has ended.
            future.cancel()
            raise

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this thread."""
        return threading.current_thread() is self._thread

    def call(self, callback: Callable[[], None]) -> None:
        """Calls a callback there soon. From any thread."""
        self.loop.call_soon_threadsafe(callback)

    def stop(self) -> None:
        """Ends the loop and the thread. Tasks that do not end soon are cancelled."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            tasks = asyncio.all_tasks(self.loop)
            if tasks:
                # Tasks of cancelled calls end by themselves. If the loop were closed before, gRPC would deliver their
                # last events to another client's loop, which logs an error and leaks memory.
                self.loop.run_until_complete(asyncio.wait(tasks, timeout=_LAST_TASKS_SECONDS))
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()
