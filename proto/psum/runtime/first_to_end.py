"""Waiting for the first of several to end."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


async def first_to_end(*ways: Coroutine[object, None, T]) -> T:
    """The result of the first of these to end, or what it raised. The others are cancelled, and have ended too then."""
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            # What they raised holds this frame: if that held them, it would all stay until somebody looks for circles.
            del tasks, task
