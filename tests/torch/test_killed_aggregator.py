"""DistributedDataParallel when an aggregator is killed and started again at its address."""

import functools
import itertools
import pathlib
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, Final

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from faults.aggregators import AggregatorProcess
from psum.torch.staging.shared_storages import SharedStorages
from tests.torch.ranks import PATIENCE_SECONDS, Ranks, pipe

#: The layers' sizes. Each layer has a bucket of its own; one is cut into several shards.
SIZES: Final = (16, 600, 600, 16, 4)
BUCKET_MEGABYTES: Final = 0.001

#: Sizes with which the buckets of all weights can be shared, and the step from which they are.
#: psum moves a bucket when it is averaged for the third time. DistributedDataParallel makes other buckets after step 0.
LARGE_SIZES: Final = (520, 600, 1000, 300)
SHARED_FROM: Final = 4

#: Moments in a step of rank 0: before it has begun any average, after some, after all but the last, and when it has all
#: of them while rank 1 may not.
MOMENTS: Final = ("forward", "middle", "last", "averaged")


class Teller:
    """Tells the test that a moment has come, and waits until the test has done something.

    Args:
        connection: To the test. None: nobody wants to know.
        first: The step of the first moment; each further moment has the next step.
    """

    def __init__(self, connection: "Connection[Any, Any] | None", first: int) -> None:
        self._connection = connection
        self._moments = dict(enumerate(MOMENTS, first))
        self.step = -1

    def reached(self, moment: str) -> None:
        """Called at each moment of each step."""
        if self._connection is not None and self._moments.get(self.step) == moment:
            self._connection.send(moment)
            assert self._connection.poll(PATIENCE_SECONDS)
            self._connection.recv()


def trained(
    connection: "Connection[Any, Any] | None", sizes: Sequence[int], first: int, *, as_views: bool = False
) -> tuple[list[bytes], list[int]]:
    """Train for some steps.

    Args:
        connection: To the test. None: nobody wants to know.
        sizes: The layers' sizes.
        first: The step of the first moment.
        as_views: Whether gradients are views of buckets.

    Returns:
        The bits of all parameters, and after each step how many bytes of buckets lie in shared memory.
    """
    teller = Teller(connection if dist.get_rank() == 0 else None, first)
    torch.manual_seed(0)
    layers = [torch.nn.Linear(inner, outer) for inner, outer in itertools.pairwise(sizes)]
    # Gradients come in the reverse order of the layers.
    layers[1].weight.register_hook(lambda _: teller.reached("middle"))
    layers[0].weight.register_hook(lambda _: teller.reached("last"))
    model = DistributedDataParallel(
        torch.nn.Sequential(*layers), bucket_cap_mb=BUCKET_MEGABYTES, gradient_as_bucket_view=as_views
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = torch.Generator().manual_seed(dist.get_rank())
    group: Any = dist.group.WORLD
    shared = []
    for teller.step in range(first + len(MOMENTS) + 1):
        optimizer.zero_grad()
        loss = model(torch.randn(8, sizes[0], generator=data)).pow(2).mean()
        teller.reached("forward")
        loss.backward()
        teller.reached("averaged")
        optimizer.step()
        shared.append(SharedStorages.of(group.client).nbytes)
    return [parameter.detach().numpy().tobytes() for parameter in model.parameters()], shared


@pytest.fixture
def aggregator(shared_fleet: object, tmp_path: pathlib.Path) -> Iterator[AggregatorProcess]:
    """An aggregator that can be killed."""
    made = AggregatorProcess(tmp_path / "aggregator")
    yield made
    made.close()


@pytest.mark.parametrize("as_views", [False, True])
def test_no_bit_changes_if_buckets_are_shared(ranks: Ranks, aggregator: AggregatorProcess, as_views: bool) -> None:
    """The same while the buckets of all weights lie in shared memory, from where the aggregator reads them. The
    training that nothing has disturbed copies them."""
    parameters, shared = _disturbed(aggregator, LARGE_SIZES, SHARED_FROM, as_views=as_views)
    weights = sum(len(bits) for bits in parameters if len(bits) >= 1 << 20)
    assert shared[SHARED_FROM - 1 :] == [weights] * (len(shared) - SHARED_FROM + 1)
    copying = {"PSUM_TORCH_SHARE_BUFFERS": "0"}
    undisturbed = ranks.run(2, trained, None, LARGE_SIZES, SHARED_FROM, environ=copying)
    assert undisturbed == [(parameters, [0] * len(shared))] * 2


def test_no_bit_changes(ranks: Ranks, aggregator: AggregatorProcess) -> None:
    """An aggregator is killed with SIGKILL at four moments of a step, and started again before or after rank 0 goes on.
    The training continues, and ends with the bits of one that nothing has disturbed."""
    parameters, _ = _disturbed(aggregator, SIZES, first=1)
    assert [bits for bits, _ in ranks.run(2, trained, None, SIZES, 1)] == [parameters] * 2


def _disturbed(
    aggregator: AggregatorProcess, sizes: Sequence[int], first: int, *, as_views: bool = False
) -> tuple[list[bytes], list[int]]:
    """Kills the aggregator at each moment of a training of two ranks. Returns what `trained` does, on both ranks."""
    ours, theirs = pipe()
    killed: list[str] = []

    def kill() -> None:
        for number in range(len(MOMENTS)):
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
    disturbed = Ranks([aggregator.address]).run(2, functools.partial(trained, as_views=as_views), theirs, sizes, first)
    killer.join(PATIENCE_SECONDS)
    assert killed == list(MOMENTS)
    assert aggregator.log.count("listening on") == 1 + len(MOMENTS)
    assert disturbed[0] == disturbed[1]
    result: tuple[list[bytes], list[int]] = disturbed[0]
    return result
