"""Checks that all ranks have the same parameters."""

from collections.abc import Callable
from typing import Any

import pytest

from psum.client import (
    AbortedError,
    Comparison,
    Operation,
    OutOfStepError,
    Settings,
    connect,
)
from psum.mxnet import BytePS, check_in_step, kvstore, parameter_check
from psum.mxnet.compat import MAJOR_VERSION, MXNetError, mx

array = mx.np.array if MAJOR_VERSION >= 2 else mx.nd.array


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Records the names in each comparison."""
    calls: list[list[str]] = []

    def compare(comparison: Any, named: Any) -> None:
        calls.append([name for name, _ in named])

    monkeypatch.setattr(parameter_check, "_compare", compare)
    return calls


def network(devices: int = 1) -> Any:
    """A network with a parameter of each kind: trained, frozen, and private to each rank."""
    net = mx.gluon.nn.Sequential()
    net.add(mx.gluon.nn.Dense(2, in_units=3, use_bias=False), mx.gluon.nn.BatchNorm(in_channels=2))
    net.initialize(ctx=[mx.cpu(number) for number in range(devices)])
    net[1].beta.grad_req = "null"
    return net


@pytest.mark.parametrize("checked", ["0", "1"])
def test_ways_to_drift(run_workers: Callable[..., list[Any]], checked: str) -> None:
    """Both ranks get an error for each known way to drift, with the parameters, on request or from the Trainer itself.
    Ranks get back in step as docs/drift.md says."""
    first, second = (run.check() for run in run_workers("drift.py", PSUM_CHECK_EVERY=checked))
    assert first == second
    batches, stale, data, reinit, well, again = first.splitlines()
    assert "rank 1 differs in " in batches
    # In that order for whoever asks, in the order of the Trainer's numbers for the Trainer.
    assert "of 4 parameters" in batches
    assert all(f"{name}.{kind}" in stale or "1 more" in stale for name in "ab" for kind in ("weight", "bias"))
    assert "a.weight" in data
    assert "b.weight" in reinit
    assert "a.weight" not in reinit
    assert (well, again) == ("in step", "in step again")


def test_what_is_checked(local_store: BytePS, compared: list[list[str]]) -> None:
    """Networks, Trainers, dictionaries and lists can be checked. Running means, which differ by design, are left
    out."""
    net = network()
    parameters = net.collect_params()
    kept = [name for name in parameters if "running" not in name]
    assert len(kept) == 3
    trainer = mx.gluon.Trainer(parameters, "sgd", kvstore=local_store)
    check_in_step(net)
    check_in_step(parameters)
    check_in_step(list(parameters.values()))
    check_in_step({"x": mx.nd.ones((1,)), "y": net[0].weight})
    check_in_step([mx.nd.ones((1,)), mx.nd.ones((2,))])
    with mx.autograd.record():
        loss = net(array([[1.0, 2.0, 3.0]])).sum()
    loss.backward()
    trainer.step(1)
    check_in_step(trainer)
    *named, stepped = compared
    listed = [parameters[name].name for name in kept]
    assert named == [kept, kept, listed, ["x", "y"], ["0", "1"]]
    assert sorted(stepped) == sorted(kept)


@pytest.mark.parametrize("what", [None, 3, "net", object()])
def test_what_cannot_be_checked(what: object) -> None:
    """The error says what is expected, before any other rank is asked."""
    with pytest.raises(TypeError, match=r"check_in_step of a \w+; expected a network, a Trainer, a Module"):
        check_in_step(what)
    with pytest.raises(TypeError, match=r"check_in_step of a \w+, w; expected a network"):
        check_in_step({"w": what})


def test_copies_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank whose devices hold different copies is out of step, even in a job of one worker."""
    with connect(Settings()) as client:
        monkeypatch.setattr(parameter_check, "shared_client", lambda: client)
        net = network(devices=3)
        check_in_step(net)
        net[0].weight.list_data()[2][:] = 7
        with pytest.raises(OutOfStepError, match=r"rank 0 has different copies of .*weight: cpu\(2\) against cpu\(0\)"):
            check_in_step(net)


def test_parameters_that_are_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters without a shape yet are no error."""
    with connect(Settings()) as client:
        monkeypatch.setattr(parameter_check, "shared_client", lambda: client)
        net = mx.gluon.nn.Dense(3)
        net.initialize()
        check_in_step(net)


def test_a_value_that_cannot_be_computed(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank that cannot compute a value gets MXNet's error, and the others learn why it has nothing to compare."""
    told: list[str] = []
    monkeypatch.setattr(Comparison, "abort", lambda comparison, reason: told.append(reason))
    monkeypatch.setattr(parameter_check, "shared_client", lambda: client)
    failed = mx.nd.zeros((2,))
    BytePS(client).pushpull("w", failed)
    client.next_started().finish(error=AbortedError("division by zero"))
    with pytest.raises(MXNetError, match="division by zero"):
        check_in_step([failed])
    assert len(told) == 1
    assert "its parameters could not be read: MXNetError" in told[0]
    assert "division by zero" in told[0]


@pytest.mark.parametrize(("every", "expected"), [(0, 0), (1, 6), (3, 2), (4, 1), (7, 0)])
def test_every_so_many_updates(
    client: Any, monkeypatch: pytest.MonkeyPatch, compared: list[list[str]], every: int, expected: int
) -> None:
    """Each Trainer counts its own updates, in `step` and `update`, whatever else uses the store."""
    client.peers = lambda ticket: ticket.value
    client.settings = Settings(check_every=every)
    monkeypatch.setattr(kvstore, "shared_client", lambda: client)
    store = BytePS(client)
    nets = [mx.gluon.nn.Dense(1, in_units=1, use_bias=False) for _ in range(2)]
    for net in nets:
        net.initialize()
    trainers = [
        mx.gluon.Trainer({name: net.weight}, "sgd", kvstore=given)
        for name, net, given in zip("ab", nets, (store, "byteps"), strict=True)
    ]
    for number in range(6):
        with mx.autograd.record():
            loss = nets[0](array([[1.0]]))
        loss.backward()
        if number % 2:
            trainers[0].step(1)
        else:
            trainers[0].allreduce_grads()
            trainers[0].update(1)
    assert compared == [["a"]] * expected
    with mx.autograd.record():
        loss = nets[1](array([[1.0]]))
    loss.backward()
    trainers[1].step(1)
    assert compared[expected:] == [["b"]] * (every == 1)


@pytest.mark.skipif(not hasattr(mx, "mod"), reason="MXNet 2 has no Module")
def test_updates_of_a_module(client: Any, monkeypatch: pytest.MonkeyPatch, compared: list[list[str]]) -> None:
    """A Module is checked like a Trainer, by itself and on request."""
    client.peers = lambda ticket: ticket.value
    client.settings = Settings(check_every=2)
    monkeypatch.setattr(kvstore, "shared_client", lambda: client)
    output = mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=1, name="fc")
    output = mx.sym.LinearRegressionOutput(output, mx.sym.Variable("label"))
    module = mx.mod.Module(output, label_names=["label"])
    data = mx.io.NDArrayIter(mx.nd.ones((6, 2)), mx.nd.ones((6,)), batch_size=2, label_name="label")
    module.fit(data, eval_metric="mse", kvstore="byteps", num_epoch=1)
    assert compared == [["fc_weight", "fc_bias"]]
    check_in_step(module)
    assert compared[1:] == [["fc_weight", "fc_bias"]]
    assert {ticket.operation for ticket in client.reserved} == {Operation.SUM, Operation.BROADCAST}


def test_a_trainer_with_another_store_is_left_alone(compared: list[list[str]]) -> None:
    """A Trainer that does not use psum is not checked by itself."""
    net = mx.gluon.nn.Dense(1, in_units=1)
    net.initialize()
    for store in ("device", None):
        trainer = mx.gluon.Trainer(net.collect_params(), "sgd", kvstore=store)
        with mx.autograd.record():
            loss = net(array([[1.0]]))
        loss.backward()
        trainer.step(1)
    assert compared == []
