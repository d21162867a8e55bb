"""DistributedOptimizer in a job of one worker: it behaves as the optimizer that it is made of."""

import copy
import io
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import psum.client
import psum.torch


@pytest.fixture(autouse=True)
def joined() -> Iterator[None]:
    """This process in a job of its own."""
    psum.torch.init()
    yield
    psum.torch.shutdown()


def averages() -> int:
    """How many averages this process has made so far."""
    client = psum.torch.job.store().client
    assert isinstance(client, psum.client.Client)
    return client.statistics().push_pull.total.count


def network() -> Any:
    """A network that is the same in every call."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))


def batches() -> Iterator[Any]:
    """Some inputs."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        yield torch.randn(8, 4, generator=generator)


def optimizer_of(kind: str, net: Any) -> Any:
    """An optimizer with state, in two groups."""
    first, *rest = net.parameters()
    groups = [{"params": [first], "lr": 0.2}, {"params": rest}]
    if kind == "SGD":
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)
    if kind == "Adam":
        return torch.optim.Adam(groups, lr=0.01)
    return torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=3)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "LBFGS"])
@pytest.mark.parametrize("named", [True, False])
def test_updates_are_those_of_the_optimizer(kind: str, named: bool) -> None:
    """With one worker, parameters and state are those of the plain optimizer, with a schedule and with closures."""

    def train(distributed: bool) -> tuple[Any, Any]:
        net = network()
        optimizer = optimizer_of(kind, net)
        if distributed:
            names = net.named_parameters() if named else None
            optimizer = psum.torch.DistributedOptimizer(optimizer, named_parameters=names)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        for inputs in batches():

            def closure(inputs: Any = inputs) -> Any:
                optimizer.zero_grad()
                loss = net(inputs).pow(2).mean()
                loss.backward()
                return loss

            if kind == "LBFGS":
                assert optimizer.step(closure) is not None
            else:
                closure()
                optimizer.step()
            schedule.step()
        return list(net.parameters()), optimizer.state_dict()

    parameters, state = train(False)
    ours, our_state = train(True)
    assert all(map(torch.equal, ours, parameters))
    torch.testing.assert_close(our_state, state, rtol=0, atol=0)


def test_it_is_still_the_optimizers_class() -> None:
    """Schedulers, scalers and programs that ask for the class find it; its state and hooks stay as they are."""
    net = network()
    plain = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    steps: list[str] = []
    plain.register_step_pre_hook(lambda *_: steps.append("step"))
    net(next(batches())).sum().backward()
    plain.step()
    optimizer = psum.torch.DistributedOptimizer(plain)
    assert isinstance(optimizer, torch.optim.SGD)
    assert type(optimizer).__name__ == "SGD"
    assert len(optimizer.state) == 4
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.zero_grad()
    net(next(batches())).sum().backward()
    optimizer.step()
    assert steps == ["step"] * 2


def test_a_scheduler_made_before_does_not_go_round_it() -> None:
    """A scheduler of the original optimizer replaces its step; the distributed one still waits for its averages."""
    net = network()
    plain = torch.optim.SGD(net.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(plain, 1)
    optimizer = psum.torch.DistributedOptimizer(plain)
    net(next(batches())).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_synchronize_before_step() -> None:
    """Gradients that are changed after synchronize are not averaged again by step, nor with skip_synchronize."""
    for skips in (False, True):
        net = network()
        optimizer = psum.torch.DistributedOptimizer(torch.optim.SGD(net.parameters(), lr=1.0))
        before = [parameter.detach().clone() for parameter in net.parameters()]
        net(next(batches())).sum().backward()
        optimizer.synchronize()
        begun = averages()
        for parameter in net.parameters():
            parameter.grad.fill_(2.0)
        if skips:
            with optimizer.skip_synchronize():
                optimizer.step()
        else:
            optimizer.step()
        assert averages() == begun
        assert all(torch.equal(a - 2.0, b) for a, b in zip(before, net.parameters(), strict=True))


def test_zero_grad_too_early() -> None:
    """Resetting gradients that are being averaged is an error that says what to do."""
    net = network()
    optimizer = psum.torch.DistributedOptimizer(
        torch.optim.SGD(net.parameters(), lr=1.0), named_parameters=net.named_parameters()
    )
    net(next(batches())).sum().backward()
    with pytest.raises(RuntimeError, match=r"averages 4 gradients, such as that of '0\.weight'; call step\(\)"):
        optimizer.zero_grad()
    net.zero_grad()  # nobody sees this one: the averages are put back
    optimizer.step()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_models_with_hooks_can_be_copied_and_saved() -> None:
    """A network whose gradients are averaged can be pickled and copied; the copy averages nothing."""
    net = network()
    optimizer = psum.torch.DistributedOptimizer(torch.optim.SGD(net.parameters(), lr=1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.save(net, io.BytesIO())
        other = copy.deepcopy(net)
    other(next(batches())).sum().backward()
    optimizer.zero_grad()


def test_parameters_that_are_added_later() -> None:
    """A group that is added later is averaged as well."""
    net = network()
    first, *rest = net.parameters()
    optimizer = psum.torch.DistributedOptimizer(torch.optim.SGD([first], lr=1.0))
    optimizer.add_param_group({"params": rest})
    net(next(batches())).sum().backward()
    before = averages()
    optimizer.step()
    assert averages() - before >= len(rest)


def test_bad_input() -> None:
    """What cannot be meant is an error that says what was expected."""
    net = network()
    named = list(net.named_parameters())
    plain = torch.optim.SGD(net.parameters(), lr=1.0)
    for names, error, text in (
        ([name for name, _ in named], TypeError, "pairs of a name and a parameter"),
        ([("w", parameter) for _, parameter in named], ValueError, r"must be unique; there are several w"),
        (named[1:], ValueError, r"lacks 1 of the optimizer's parameters, of the shapes \(6, 4\)"),
    ):
        with pytest.raises(error, match=text):
            psum.torch.DistributedOptimizer(plain, named_parameters=names)
    with pytest.raises(TypeError, match=r"optimizer is a Sequential; expected a torch\.optim\.Optimizer"):
        psum.torch.DistributedOptimizer(net)
    with pytest.raises(TypeError, match="a DistributedOptimizer already"):
        psum.torch.DistributedOptimizer(psum.torch.DistributedOptimizer(plain))
    with pytest.raises(ValueError, match="expected a whole number from 1"):
        psum.torch.DistributedOptimizer(plain, backward_passes_per_step=0)
    with pytest.raises(ValueError, match="root_rank is 1; the job has the ranks 0 to 0"):
        psum.torch.broadcast_parameters(net.state_dict(), root_rank=1)
    with pytest.raises(TypeError, match=r"params must be a state_dict\(\) or named_parameters\(\)"):
        psum.torch.broadcast_parameters(net.parameters())
    with pytest.raises(TypeError, match="parameter 'n' is a int"):
        psum.torch.broadcast_parameters({"n": 3})
    with pytest.raises(TypeError, match=r"an average of torch\.int64 is no torch\.int64"):
        psum.torch.push_pull(torch.tensor(3), name="n")
    with pytest.raises(ValueError, match=r"psum has psum\.torch\.Average and psum\.torch\.Sum"):
        psum.torch.allreduce(torch.zeros(1), op="Adasum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leave average out"):
        psum.torch.allreduce(torch.zeros(1), average=True, op=psum.torch.Sum)
    psum.torch.push_pull(torch.zeros(3), name="m")
    with pytest.raises(ValueError, match="push_pull m"):
        psum.torch.push_pull(torch.zeros(2), name="m")


def test_before_init_and_after_shutdown() -> None:
    """Outside of a job there is neither a rank nor a sum; a second init and a second shutdown do nothing."""
    psum.torch.init()
    assert psum.torch.is_initialized()
    assert (psum.torch.rank(), psum.torch.size(), psum.torch.local_rank(), psum.torch.local_size()) == (0, 1, 0, 1)
    psum.torch.shutdown()
    psum.torch.shutdown()
    assert not psum.torch.is_initialized()
    for call in (psum.torch.rank, lambda: psum.torch.push_pull(torch.zeros(1)), psum.torch.broadcast_object):
        with pytest.raises(RuntimeError, match=r"call psum\.torch\.init\(\) first"):
            call()
    psum.torch.init()
    assert psum.torch.push_pull(torch.ones(1), name="x").item() == 1.0


def test_a_size_without_a_rank_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each process would train alone."""
    psum.torch.shutdown()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(psum.client.ConfigurationError, match="neither RANK nor PSUM_RANK is set"):
        psum.torch.init()
    monkeypatch.setenv("PSUM_RANK", "0")
    monkeypatch.setenv("PSUM_NUM_WORKERS", "1")
    psum.torch.init()
