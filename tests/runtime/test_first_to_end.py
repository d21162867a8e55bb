"""The first of several to end ends the others, and nothing of them stays."""

import asyncio
import contextlib
import gc
import weakref

import pytest

from psum.runtime import first_to_end


class Held:
    """What a coroutine has."""


async def _hold(held: Held, ended: list[Held]) -> str:
    try:
        await asyncio.Event().wait()
        return "never"
    finally:
        # Others have ended when the result is there, also those that take a while for it.
        await asyncio.sleep(0)
        ended.append(held)


async def _say(word: str) -> str:
    return word


async def _break(held: Held) -> str:
    raise ConnectionResetError(f"broken {held}")


async def test_the_result_is_that_of_the_first_and_the_others_have_ended() -> None:
    """Whatever these do on their way out is done by then."""
    ended: list[Held] = []
    held = Held()
    assert await first_to_end(_hold(held, ended), _say("this")) == "this"
    assert ended == [held]


async def test_what_the_first_raises_is_raised_and_nothing_stays() -> None:
    """No exception, frame or task keeps what the coroutines had, though nobody looks for circles."""
    held = Held(), Held()
    watched = [weakref.ref(one) for one in held]
    ended: list[Held] = []
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(ConnectionResetError):
            await first_to_end(_break(held[0]), _break(held[1]), _hold(held[0], ended))
            pytest.fail("nothing was raised")
        del held
        ended.clear()
        # asyncio holds the last exception until its next turn.
        await asyncio.sleep(0)
        assert [one() for one in watched] == [None, None]
    finally:
        gc.enable()


async def test_a_cancelled_wait_cancels_all() -> None:
    """And waits until they have ended."""
    ended: list[Held] = []
    held = Held(), Held()
    waiting = asyncio.create_task(first_to_end(*(_hold(one, ended) for one in held)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended == list(held)
