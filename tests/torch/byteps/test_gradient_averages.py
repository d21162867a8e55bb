"""Averages of gradients: each exactly once a step, whatever part of the network a rank has used."""

import functools
import gc
import operator
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch

from psum import client as psum
from psum.torch.byteps.compression import Compression, Compressor
from psum.torch.byteps.gradient_averages import GradientAverages
from tests.integration.conftest import Fleet

T = TypeVar("T")

RANKS = 3


def averages_of(client: psum.Client, net: Any, compression: Compressor = Compression.none, passes: int = 1) -> Any:
    """What averages the gradients of a network."""
    averages = GradientAverages(client.store(), compression, passes)
    averages.watch(net.named_parameters())
    return averages


def network() -> Any:
    """A network that is the same on all ranks."""
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net


def loss(net: Any, rank: int, batch: int = 0) -> Any:
    """The loss of a rank's own batch."""
    inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(1000 * batch + rank))
    return net(inputs).pow(2).mean()


def gradients(net: Any) -> list[Any]:
    """Copies of a network's gradients."""
    return [parameter.grad.clone() for parameter in net.parameters()]


def expected(ranks: int, batches: int = 1) -> list[Any]:
    """The averages that plain torch computes: each rank's share, added up in rank order."""
    shares = []
    for rank in range(ranks):
        net = network()
        for batch in range(batches):
            loss(net, rank, batch).backward()
        shares.append([gradient / ranks for gradient in gradients(net)])
    return [functools.reduce(operator.add, same) for same in zip(*shares, strict=True)]


def on_every_rank(fleet: Fleet, job: str, work: Callable[[psum.Client], T], ranks: int = RANKS) -> list[T]:
    """Does the work on all ranks of a job."""
    return fleet.on_every_rank(ranks, work, job=job)


def test_they_are_plain_averages_in_every_step(fleet: Fleet, job: str) -> None:
    """Bit for bit, every rank has the sum in rank order of all ranks' gradients divided by their number."""

    def work(client: psum.Client) -> list[list[Any]]:
        net, steps = network(), []
        averages = averages_of(client, net)
        for _ in range(2):
            net.zero_grad()
            loss(net, client.rank).backward()
            averages.finish()
            steps.append(gradients(net))
        return steps

    for steps in on_every_rank(fleet, job, work):
        for step in steps:
            assert all(map(torch.equal, step, expected(RANKS)))


def test_several_passes_add_up(fleet: Fleet, job: str) -> None:
    """Gradients of several backward passes are averaged once, after the last; fewer passes are averaged by finish."""

    def work(client: psum.Client) -> list[list[Any]]:
        net, steps = network(), []
        averages = averages_of(client, net, passes=2)
        for batches in (2, 1):
            net.zero_grad()
            for batch in range(batches):
                assert averages.pending == []
                loss(net, client.rank, batch).backward()
            averages.finish()
            steps.append(gradients(net))
        return steps

    for steps in on_every_rank(fleet, job, work):
        for step, batches in zip(steps, (2, 1), strict=True):
            assert all(map(torch.equal, step, expected(RANKS, batches)))


def test_a_part_that_a_rank_does_not_use_counts_as_zeros(fleet: Fleet, job: str) -> None:
    """Ranks that use different parts of a network get all averages; a frozen parameter has none until it is thawed."""

    def work(client: psum.Client) -> tuple[Any, Any, Any, Any]:
        parts = torch.nn.ModuleDict(
            {"a": torch.nn.Linear(2, 1), "b": torch.nn.Linear(2, 1), "c": torch.nn.Linear(2, 1)}
        )
        parts["c"].requires_grad_(False)
        averages = averages_of(client, parts)
        used = parts["a" if client.rank == 0 else "b"]
        used(torch.full((1, 2), 3.0)).sum().backward()
        averages.finish()
        frozen = parts["c"].weight.grad
        parts["c"].requires_grad_(True)
        averages.watch(parts.named_parameters())
        averages.reopen()
        parts.zero_grad()
        parts["c"](torch.full((1, 2), 3.0)).sum().backward()
        averages.finish()
        return used.weight.grad, frozen, parts["c"].weight.grad, parts["a"].bias.grad

    zeros, thawed = torch.zeros(1), torch.full((1, 2), 3.0)
    for _, frozen, c, bias in on_every_rank(fleet, job, work, 2):
        assert frozen is None
        assert torch.equal(c, thawed)
        assert torch.equal(bias, zeros)


def test_fp16_sends_half_the_bytes_and_keeps_the_type(fleet: Fleet, job: str) -> None:
    """With Compression.fp16 gradients stay float32, and are those that float16 can tell."""

    def work(client: psum.Client) -> list[Any]:
        net = network()
        averages = averages_of(client, net, Compression.fp16)
        loss(net, client.rank).backward()
        averages.finish()
        return gradients(net)

    first, *others = on_every_rank(fleet, job, work)
    for gradient, exact in zip(first, expected(RANKS), strict=True):
        assert gradient.dtype is torch.float32
        assert torch.equal(gradient, gradient.half().float())
        torch.testing.assert_close(gradient, exact, rtol=2e-3, atol=2e-4)
    for other in others:
        assert all(map(torch.equal, other, first))


def test_first_parameters_go_first() -> None:
    """What the next forward pass needs first has the highest priority."""
    with psum.connect(psum.Settings()) as client:
        averages = averages_of(client, network())
        priorities = [parameter.priority for parameter in averages._parameters.values()]
    assert priorities == sorted(priorities, reverse=True)
    assert len(set(priorities)) == len(priorities)


def test_one_backward_pass_too_many() -> None:
    """A second backward pass before a step would change what is being sent. The error says what to do."""
    with psum.connect(psum.Settings()) as client:
        net = network()
        averages = averages_of(client, net)
        loss(net, 0).backward()
        with pytest.raises(RuntimeError, match=r"gradient of '2\.bias'.*raise backward_passes_per_step"):
            loss(net, 0).backward()
        averages.finish()


@pytest.mark.parametrize("passes", [0, -1, True, 1.5])
def test_bad_numbers_of_passes(passes: Any) -> None:
    """Only a positive whole number of passes can be asked for."""
    with psum.connect(psum.Settings()) as client, pytest.raises(ValueError, match="expected a whole number from 1"):
        GradientAverages(client.store(), Compression.none, passes)


@pytest.mark.parametrize("compression", [Compression.none, Compression.fp16])
def test_a_sparse_gradient(compression: Compressor) -> None:
    """A sparse gradient is an error that names the parameter and says what to do, in backward and in finish."""
    with psum.connect(psum.Settings()) as client:
        net = torch.nn.Embedding(4, 2, sparse=True)
        averages = averages_of(client, net, compression)
        with pytest.raises(TypeError, match=r"gradient of 'weight' is a sparse tensor.*sparse=False"):
            net(torch.tensor([1])).sum().backward()
        with pytest.raises(TypeError, match=r"gradient of 'weight' is a sparse tensor"):
            averages.finish()
        assert averages.pending == []


def test_a_later_one_takes_over() -> None:
    """Of two that average one parameter, the later one does so; the earlier one says so when it is used."""
    with psum.connect(psum.Settings()) as client:
        net = network()
        earlier = averages_of(client, net)
        later = averages_of(client, net)
        loss(net, 0).backward()
        assert (len(earlier.pending), len(later.pending)) == (0, 4)
        with pytest.raises(RuntimeError, match=r"a later DistributedOptimizer has taken over '0\.weight', .* 1 more"):
            earlier.finish()
        later.finish()


def test_hooks_end_with_it() -> None:
    """A network whose optimizer is gone averages nothing."""
    with psum.connect(psum.Settings()) as client:
        net = network()
        averages = averages_of(client, net)
        del averages
        gc.collect()
        loss(net, 0).backward()
        assert not any(parameter._post_accumulate_grad_hooks for parameter in net.parameters())
        assert client.statistics().push_pull.total.count == 0


def test_a_failure_names_its_cause_and_leaves_nothing_under_way(fleet: Fleet, job: str) -> None:
    """Ranks whose parameters differ in shape get psum's error from finish, which shows both shapes."""

    def work(client: psum.Client) -> str:
        net = torch.nn.Linear(2, 2 + client.rank)
        averages = averages_of(client, net)

        def step() -> None:
            # The rank that is late may hear of the disagreement when it begins its own average.
            net(torch.ones(1, 2)).sum().backward()
            averages.finish()

        with pytest.raises(psum.DisagreementError) as caught:
            step()
        assert averages.pending == []
        return str(caught.value)

    for text in on_every_rank(fleet, job, work, 2):
        assert "gradient weight" in text or "gradient bias" in text
