"""The first coroutine that ends cancels the others, and no reference to them remains."""

import asyncio
import contextlib
import gc
import weakref

import pytest

from psum.runtime import first_completed


class Held:
    """An object that a coroutine holds."""


async def _hold(held: Held, ended: list[Held]) -> str:
    try:
        await asyncio.Event().wait()
        return "never"
    finally:
        # Cleanup that takes a while also finishes before the result is returned.
        await asyncio.sleep(0)
        ended.append(held)


async def _say(word: str) -> str:
    return word


async def _break(held: Held) -> str:
    raise ConnectionResetError(f"broken {held}")


async def test_the_result_is_that_of_the_first_and_the_others_have_ended() -> None:
    """The others have also finished their cleanup by then."""
    ended: list[Held] = []
    held = Held()
    assert await first_completed(_hold(held, ended), _say("this")) == "this"
    assert ended == [held]


async def test_what_the_first_raises_is_raised_and_nothing_stays() -> None:
    """No exception, frame or task keeps the coroutines' objects alive, even without the garbage collector."""
    held = Held(), Held()
    watched = [weakref.ref(one) for one in held]
    ended: list[Held] = []
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(ConnectionResetError):
            await first_completed(_break(held[0]), _break(held[1]), _hold(held[0], ended))
            pytest.fail("nothing was raised")
        del held
        ended.clear()
        # asyncio keeps the last exception until its next iteration.
        await asyncio.sleep(0)
        assert [one() for one in watched] == [None, None]
    finally:
        gc.enable()


async def test_a_cancelled_wait_cancels_all() -> None:
    """It also waits until they have ended."""
    ended: list[Held] = []
    held = Held(), Held()
    waiting = asyncio.create_task(first_completed(*(_hold(one, ended) for one in held)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended == list(held)
