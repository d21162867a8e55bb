"""The store under gluon.Trainer and Module, with a core client that plays the other ranks."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from psum.client import AbortedError, Operation
from psum.mxnet import BytePS, ElasticState, kvstore
from psum.mxnet.compat import MAJOR_VERSION, MXNetError, mx

ONE_DEVICE = (mx.cpu(0),)
TWO_DEVICES = (mx.cpu(0), mx.cpu(1))


@pytest.fixture
def two_ranks(client: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A job whose other rank has the same gradients, so sums are doubled. Stores made by name join it."""
    client.peers = lambda ticket: ticket.value * (2 if ticket.operation == Operation.SUM else 1)
    monkeypatch.setattr(kvstore, "shared_client", lambda: client)
    return client


def dense(devices: tuple[Any, ...]) -> Any:
    """A layer with two weights of 1."""
    net = mx.gluon.nn.Dense(1, in_units=2, use_bias=False)
    net.initialize(mx.init.Constant(1.0), ctx=list(devices))
    return net


def weights(net: Any) -> list[list[float]]:
    return [data.asnumpy().reshape(-1).tolist() for data in net.weight.list_data()]


def step(net: Any, trainer: Any, devices: tuple[Any, ...]) -> None:
    """One step whose gradient is [1, 2] on each device."""
    # Blocks of MXNet 2 take the arrays of mx.np only.
    array = mx.np.array if MAJOR_VERSION >= 2 else mx.nd.array
    with mx.autograd.record():
        losses = [net(array([[1.0, 2.0]], ctx=device)) for device in devices]
    for loss in losses:
        loss.backward()
    trainer.step(1)


@pytest.mark.parametrize("make", [lambda: "byteps", lambda: "BytePS", lambda: mx.kv.create("byteps")])
@pytest.mark.parametrize("devices", [ONE_DEVICE, TWO_DEVICES], ids=["one_device", "two_devices"])
def test_trainer(two_ranks: Any, make: Callable[[], Any], devices: tuple[Any, ...]) -> None:
    """The gradients of all devices and ranks are summed, the store given by name or as an instance."""
    net = dense(devices)
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.25}, kvstore=make())
    step(net, trainer, devices)
    summed = 2 * len(devices)
    assert weights(net) == [[1 - 0.25 * summed * 1, 1 - 0.25 * summed * 2]] * len(devices)
    assert [t.operation for t in two_ranks.reserved] == [Operation.BROADCAST, Operation.SUM]


def test_an_elastic_state_has_no_values_with_names_of_its_own(client: Any) -> None:
    """Also where they are filled in place: they would hide a method, or replace an entry."""
    trainer = mx.gluon.Trainer(dense(ONE_DEVICE).collect_params(), "sgd", kvstore=BytePS(client))
    for name in ("step", "members", "trainer"):
        with pytest.raises(TypeError, match=f"a value of an ElasticState cannot be called '{name}'"):
            ElasticState(trainer, **{name: mx.nd.zeros(1)})


def test_trainer_priorities(two_ranks: Any) -> None:
    """The first parameters' gradients have the highest priority, as Trainer asks."""
    net = mx.gluon.nn.Sequential()
    net.add(mx.gluon.nn.Dense(2, in_units=2), mx.gluon.nn.Dense(1, in_units=2))
    net.initialize()
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", kvstore="byteps")
    step(net, trainer, ONE_DEVICE)
    sums = [t for t in two_ranks.reserved if t.operation == Operation.SUM]
    assert [(t.key, t.priority) for t in sums] == [("0", 0), ("1", -1), ("2", -2), ("3", -3)]


def test_trainer_starts_with_the_weights_of_rank_0(two_ranks: Any) -> None:
    """On another rank the first step begins with rank 0's weights."""
    two_ranks.rank = 1
    two_ranks.peers = lambda t: np.array([[5.0, 6.0]]) if t.operation == Operation.BROADCAST else t.value * 2
    net = dense(ONE_DEVICE)
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.25}, kvstore="byteps")
    step(net, trainer, ONE_DEVICE)
    assert weights(net) == [[4.5, 5.0]]


def test_trainer_with_failed_sum(two_ranks: Any) -> None:
    """A reader of the weights gets the error of a failed sum, and so does the next step."""
    net = dense(ONE_DEVICE)
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", kvstore="byteps")
    step(net, trainer, ONE_DEVICE)
    two_ranks.failure = two_ranks.refusal = AbortedError("rank 1 could not contribute to key '0' round 1")
    two_ranks.refusal, refusal = None, two_ranks.refusal
    step(net, trainer, ONE_DEVICE)
    with pytest.raises(MXNetError, match="rank 1 could not contribute"):
        weights(net)
    two_ranks.refusal = refusal
    with pytest.raises(MXNetError, match="rank 1 could not contribute"):
        trainer.allreduce_grads()
    # MXNet keeps the error of the gradient, and raises it for the next wait for all arrays.
    with contextlib.suppress(MXNetError):
        mx.nd.waitall()


def test_trainer_refuses_compression(two_ranks: Any) -> None:
    """Trainer passes its compression_params on, and gets an error."""
    net = dense(ONE_DEVICE)
    parameters = {"type": "2bit", "threshold": 0.5}
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", kvstore="byteps", compression_params=parameters)
    with pytest.raises(NotImplementedError, match="gradient compression"):
        step(net, trainer, ONE_DEVICE)


def test_trainer_without_a_store(two_ranks: Any) -> None:
    """A Trainer with another store or none is unchanged."""
    for store in (None, "device", "local"):
        net = dense(ONE_DEVICE)
        step(net, mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 1}, kvstore=store), ONE_DEVICE)
        assert weights(net) == [[0, -1]]
    assert two_ranks.reserved == []


def test_two_trainers_interleaved(local_store: BytePS, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two Trainers with different shapes under the same keys do not collide."""
    monkeypatch.setattr(kvstore, "shared_client", lambda: local_store._client)
    nets = [mx.gluon.nn.Dense(units, in_units=2) for units in (1, 3)]
    for net in nets:
        net.initialize(mx.init.One())
    trainers = [mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 1}, kvstore="byteps") for net in nets]
    for _ in range(2):
        for net, trainer in zip(nets, trainers, strict=True):
            step(net, trainer, ONE_DEVICE)
    assert weights(nets[0]) == [[-1, -3]]
    assert weights(nets[1]) == [[-1, -3] * 3]


def fit(store: Any, devices: tuple[Any, ...], rank_0: tuple[float, float] = (1.0, 1.0)) -> Any:
    """One batch of Module.fit; with rank 0's weights the gradient is [1, 2] for each of the two samples."""
    data, label = mx.sym.Variable("data"), mx.sym.Variable("label")
    output = mx.sym.FullyConnected(data, num_hidden=1, no_bias=True, name="fc")
    module = mx.mod.Module(mx.sym.LinearRegressionOutput(output, label), label_names=["label"], context=list(devices))
    samples = np.array([[1.0, 2.0]] * 2, np.float32)
    labels = samples @ np.array(rank_0, np.float32) - 1
    module.fit(
        mx.io.NDArrayIter(samples, labels, batch_size=2, label_name="label"),
        eval_metric="mse",
        kvstore=store,
        optimizer="sgd",
        optimizer_params={"learning_rate": 0.25, "rescale_grad": 1.0},
        initializer=mx.init.Constant(1.0),
        num_epoch=1,
    )
    return module.get_params()[0]["fc_weight"].asnumpy().tolist()


@pytest.mark.skipif(not hasattr(mx, "mod"), reason="MXNet 2 has no Module")
@pytest.mark.parametrize("make", [lambda: "byteps", lambda: mx.kv.create("byteps")])
@pytest.mark.parametrize("devices", [ONE_DEVICE, TWO_DEVICES], ids=["one_device", "two_devices"])
def test_module_fit(two_ranks: Any, make: Callable[[], Any], devices: tuple[Any, ...]) -> None:
    """Module.fit sums the gradients of all devices and ranks, the store given by name or as an instance."""
    assert fit(make(), devices) == [[1 - 0.25 * 4 * 1, 1 - 0.25 * 4 * 2]]


@pytest.mark.skipif(not hasattr(mx, "mod"), reason="MXNet 2 has no Module")
@pytest.mark.parametrize("devices", [ONE_DEVICE, TWO_DEVICES], ids=["one_device", "two_devices"])
def test_module_starts_with_the_weights_of_rank_0(two_ranks: Any, devices: tuple[Any, ...]) -> None:
    """On another rank Module.fit begins with rank 0's weights, on each of its devices."""
    two_ranks.rank = 1
    two_ranks.peers = lambda t: np.array([[5.0, 6.0]]) if t.operation == Operation.BROADCAST else t.value * 2
    assert fit("byteps", devices, (5.0, 6.0)) == [[4.0, 4.0]]


@pytest.mark.skipif(not hasattr(mx, "mod"), reason="MXNet 2 has no Module")
def test_module_with_another_store(two_ranks: Any) -> None:
    """Module.fit with a store of MXNet's is unchanged."""
    assert fit("local", TWO_DEVICES) == [[0.5, 0.0]]
    assert two_ranks.reserved == []
