"""Calls the jobs' `tick` regularly: time-outs, warnings, and credit that must be returned."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from psum.aggregator.service.action_runner import ActionRunner
from psum.aggregator.service.registries import Registries

_log = logging.getLogger(__name__)

#: How often time-outs are checked, and how soon credit is returned while some is held.
_TICK_SECONDS: Final = 0.25
_CREDIT_TICK_SECONDS: Final = 0.01


class Ticker:
    """Ticks from construction to `close`, on the running event loop.

    Args:
        registries: The jobs.
        runner: Carries out the jobs' actions.
        clock: The time in seconds that jobs are given.
        ticked: Called at each tick too.
    """

    def __init__(
        self, registries: Registries, runner: ActionRunner, clock: Callable[[], float], ticked: Callable[[], None]
    ) -> None:
        self._registries = registries
        self._runner = runner
        self._clock = clock
        self._ticked = ticked
        self._uncredited = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def tick_soon(self) -> None:
        """Ticks earlier than usual, because a contribution counts against a worker's credit."""
        self._uncredited.set()

    async def close(self) -> None:
        """Stops."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._uncredited.wait()
                    await asyncio.sleep(_CREDIT_TICK_SECONDS)
            try:
                for job, action in self._registries.tick(self._clock()):
                    self._runner.perform(job, [action])
                self._ticked()
            except Exception:
                # If this task ended, no job would have time-outs any more.
                _log.exception("checking the jobs' time-outs failed")
            if not self._registries.uncredited:
                self._uncredited.clear()
