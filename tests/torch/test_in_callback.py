"""Whether a thread runs a callback of one of torch's futures, and on which level."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import psum.torch  # noqa: F401  (installs it)
from psum.torch import in_callback as module
from psum.torch.in_callback import level


def ended(value: Any) -> Any:
    """A future that has its result."""
    future: Any = torch.futures.Future()
    future.set_result(value)
    return future


def in_another_thread(task: Callable[[], None]) -> None:
    """Do something in another thread, and wait for its end."""
    thread = threading.Thread(target=task)
    thread.start()
    thread.join()


def test_a_callback_that_runs_at_once_is_noted() -> None:
    """It runs in the middle of the program: in the first future's callback, in that of what `then` returns, and in that
    of several futures' common one. Before and after, the program runs."""
    seen = []
    both = torch.futures.collect_all([ended(1), ended(2)])
    for future in (ended(0), ended(0).then(lambda _: 1), both):
        assert level() == 0
        assert future.then(lambda _: level()).wait() == 1
        future.add_done_callback(lambda _: seen.append(level()))
        assert level() == 0
    assert seen == [1] * 3


def test_a_callback_that_runs_later_is_noted() -> None:
    """It runs in the thread that brings the result, and nothing else there counts as a callback."""
    begun: Any = torch.futures.Future()
    told = begun.then(lambda _: (level(), threading.current_thread()))
    after = []

    def end() -> None:
        begun.set_result(None)
        after.append((level(), threading.current_thread()))

    in_another_thread(end)
    assert [told.wait()] == [(1, after[0][1])]
    assert after[0][0] == 0


def test_callbacks_within_callbacks_and_errors_are_noted() -> None:
    """A callback goes on being one after an inner one, and none is left after an error."""

    def outer(_: Any) -> Any:
        assert ended(0).then(lambda _: level()).wait() == 2
        return level()

    assert ended(0).then(outer).wait() == 1
    with pytest.raises(RuntimeError, match="what went wrong"):
        ended(0).then(lambda _: (_ for _ in ()).throw(ValueError("what went wrong"))).wait()
    assert level() == 0


def test_a_callback_has_the_level_of_the_code_that_added_it() -> None:
    """A callback that the program has added is on level 1, also if it runs within another one."""
    begun: Any = torch.futures.Future()
    first = begun.then(lambda _: level())
    second = first.then(lambda _: level())
    third = begun.then(lambda _: begun.then(lambda _: level()).wait())
    in_another_thread(lambda: begun.set_result(None))
    assert [first.wait(), second.wait(), third.wait()] == [1, 1, 2]


def test_a_second_installation_changes_nothing() -> None:
    """Importing psum.torch again does not add to what each callback costs."""
    before = torch._C.Future.then
    module.install()
    assert torch._C.Future.then is before
