"""DistributedDataParallel when an aggregator is killed and started again at its address."""

import itertools
import pathlib
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, Final

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from faults.aggregators import AggregatorProcess
from tests.torch.ranks import PATIENCE_SECONDS, Ranks, pipe

#: The layers' sizes. Each layer has a bucket of its own; one is cut into several shards.
SIZES: Final = [16, 600, 600, 16, 4]
BUCKET_MEGABYTES: Final = 0.001

#: Moments in a step of rank 0: before it has begun any average, after some, after all but the last, and when it has all
#: of them while rank 1 may not.
MOMENTS: Final = ("forward", "middle", "last", "averaged")

#: The step of each kill.
KILLS: Final = dict(enumerate(MOMENTS, start=1))

STEPS: Final = len(KILLS) + 2


class Teller:
    """Tells the test that a moment has come, and waits until the test has done something.

    Args:
        connection: To the test. None: nobody wants to know.
    """

    def __init__(self, connection: "Connection[Any, Any] | None") -> None:
        self._connection = connection
        self.step = -1

    def reached(self, moment: str) -> None:
        """Called at each moment of each step."""
        if self._connection is not None and KILLS.get(self.step) == moment:
            self._connection.send(moment)
            assert self._connection.poll(PATIENCE_SECONDS)
            self._connection.recv()


def trained(connection: "Connection[Any, Any] | None") -> list[bytes]:
    """Train for some steps. Returns the bits of all parameters."""
    teller = Teller(connection if dist.get_rank() == 0 else None)
    torch.manual_seed(0)
    layers = [torch.nn.Linear(inner, outer) for inner, outer in itertools.pairwise(SIZES)]
    # Gradients come in the reverse order of the layers.
    layers[1].weight.register_hook(lambda _: teller.reached("middle"))
    layers[0].weight.register_hook(lambda _: teller.reached("last"))
    model = DistributedDataParallel(torch.nn.Sequential(*layers), bucket_cap_mb=BUCKET_MEGABYTES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = torch.Generator().manual_seed(dist.get_rank())
    for teller.step in range(STEPS):
        optimizer.zero_grad()
        loss = model(torch.randn(8, SIZES[0], generator=data)).pow(2).mean()
        teller.reached("forward")
        loss.backward()
        teller.reached("averaged")
        optimizer.step()
    return [parameter.detach().numpy().tobytes() for parameter in model.parameters()]


@pytest.fixture
def aggregator(shared_fleet: object, tmp_path: pathlib.Path) -> Iterator[AggregatorProcess]:
    """An aggregator that can be killed."""
    made = AggregatorProcess(tmp_path / "aggregator")
    yield made
    made.close()


def test_no_bit_changes(ranks: Ranks, aggregator: AggregatorProcess) -> None:
    """An aggregator is killed with SIGKILL at four moments of a step, and started again before or after rank 0 goes on.
    The training continues, and ends with the bits of one that nothing has disturbed."""
    ours, theirs = pipe()
    killed: list[str] = []

    def kill() -> None:
        for number in range(len(KILLS)):
            if not ours.poll(PATIENCE_SECONDS):
                return
            killed.append(ours.recv())
            aggregator.end()
            goes_on_before = number % 2 == 0
            if goes_on_before:
                ours.send("")
            aggregator.start()
            if not goes_on_before:
                ours.send("")

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    disturbed = Ranks([aggregator.address]).run(2, trained, theirs)
    killer.join(PATIENCE_SECONDS)
    assert killed == list(MOMENTS)
    assert aggregator.log.count("listening on") == 1 + len(MOMENTS)
    assert disturbed[0] == disturbed[1]
    assert disturbed == ranks.run(2, trained, None)
