"""Collectives as events in the traces of torch.profiler."""

from collections.abc import Callable

import torch


def begin_event(name: str) -> Callable[[], None]:
    """Begins an event, if this thread is being profiled.

    Args:
        name: The event's name.

    Returns:
        What ends it, from any thread.
    """
    if not torch.autograd._profiler_enabled():
        return _nothing
    # The way of PyTorch's own calls that end in another thread: a future ends the event.
    ended = torch.futures.Future[None]()
    with torch.autograd.profiler.record_function(name) as event:
        event._call_end_callbacks_on_future(ended)
    return lambda: ended.set_result(None)


def _nothing() -> None:
    """Ends what has not begun."""
