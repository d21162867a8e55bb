"""Collectives in the traces of torch.profiler."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from tests.torch.ranks import Ranks


def profiled() -> dict[str, list[bool]]:
    """Begin collectives. Returns the names of their events, and whether each ends in another thread."""
    model = DistributedDataParallel(torch.nn.Linear(2, 2))
    dist.all_reduce(torch.ones(1))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        dist.broadcast(torch.ones(3), 1)
        dist.barrier()
        model(torch.ones(1, 2)).sum().backward()
        model(torch.ones(1, 2)).sum().backward()
    events: dict[str, list[bool]] = {}
    for event in profiler.events():
        if event.name.startswith("psum:"):
            events.setdefault(event.name, []).append(event.is_async)
    return events


def test_each_collective_is_an_event(ranks: Ranks) -> None:
    """Its name is that of the backend and the collective, as with PyTorch's own backends. It ends with the result."""
    for events in ranks.run(2, profiled):
        assert events["psum:broadcast"] == [True] * len(events["psum:broadcast"])
        assert events["psum:barrier"] == [True]
        assert events["psum:all_reduce"] == [True, True]
