"""Wait for the first of several coroutines."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


async def first_completed(*coroutines: Coroutine[object, None, T]) -> T:
    """Return the result of the first coroutine that ends, or raise its error. The others are cancelled and awaited."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            # The tasks' exceptions refer to this frame. Without references from it to the tasks, there is no cycle that
            # only the garbage collector could free.
            del tasks, task
