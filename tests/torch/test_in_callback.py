"""Whether a thread runs a callback of one of torch's futures."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import psum.torch  # noqa: F401  (installs it)
from psum.torch import in_callback as module
from psum.torch.in_callback import in_callback


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
        assert not in_callback()
        assert future.then(lambda _: in_callback()).wait()
        future.add_done_callback(lambda _: seen.append(in_callback()))
        assert not in_callback()
    assert seen == [True] * 3


def test_a_callback_that_runs_later_is_noted() -> None:
    """It runs in the thread that brings the result, and nothing else there counts as a callback."""
    begun: Any = torch.futures.Future()
    told = begun.then(lambda _: (in_callback(), threading.current_thread()))
    after = []

    def end() -> None:
        begun.set_result(None)
        after.append((in_callback(), threading.current_thread()))

    in_another_thread(end)
    assert [told.wait()] == [(True, after[0][1])]
    assert after[0][0] is False


def test_callbacks_within_callbacks_and_errors_are_noted() -> None:
    """A callback goes on being one after an inner one, and none is left after an error."""

    def outer(_: Any) -> Any:
        assert ended(0).then(lambda _: in_callback()).wait()
        return in_callback()

    assert ended(0).then(outer).wait()
    with pytest.raises(RuntimeError, match="what went wrong"):
        ended(0).then(lambda _: (_ for _ in ()).throw(ValueError("what went wrong"))).wait()
    assert not in_callback()


def test_a_second_installation_changes_nothing() -> None:
    """Importing psum.torch again does not add to what each callback costs."""
    before = torch._C.Future.then
    module.install()
    assert torch._C.Future.then is before
