"""An event loop in a thread of its own."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")

#: How long what runs when the loop is stopped may take to end by itself.
_LAST_TASKS_SECONDS = 0.25


class LoopThread:
    """A uvloop that runs in a background thread from construction to `stop`; the caller's loop is not touched."""

    def __init__(self, name: str) -> None:
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Runs a coroutine there and waits for its result; where the wait ends otherwise, it is cancelled.

        Raises:
            TimeoutError: It took longer.
        """
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(timeout)
        except BaseException:
            # A time-out, Ctrl-C, or what the program's handler of a signal raises. Of no effect on one that has ended.
            future.cancel()
            raise

    @property
    def is_current(self) -> bool:
        """Whether it is this thread that asks."""
        return threading.current_thread() is self._thread

    def call(self, callback: Callable[[], None]) -> None:
        """Has a callback called there soon; from any thread."""
        self.loop.call_soon_threadsafe(callback)

    def stop(self) -> None:
        """Ends the loop and the thread; what runs there and does not end soon is cancelled."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            tasks = asyncio.all_tasks(self.loop)
            if tasks:
                # Those of calls that were cancelled end by themselves. Were the loop closed before, what gRPC has still
                # to say would be lost in the loop of another client, with an error in the log and some memory.
                self.loop.run_until_complete(asyncio.wait(tasks, timeout=_LAST_TASKS_SECONDS))
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()
