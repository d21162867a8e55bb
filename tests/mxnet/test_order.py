"""Several Trainers and stores in one program get their own sums."""

from collections.abc import Callable
from typing import Any

import pytest

from psum.client import Operation, clients
from psum.client.core.store_numbers import StoreNumbers
from psum.mxnet import BytePS, kvstore
from psum.mxnet.compat import MAJOR_VERSION, mx
from psum.mxnet.names import NumberedName

needs_names = pytest.mark.skipif(MAJOR_VERSION >= 2, reason="networks of MXNet 2 have no names of their own")


@pytest.fixture
def unconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has made no store yet, in a job of one worker."""
    for name in ("PSUM_AGGREGATORS", "PSUM_NUM_WORKERS", "DMLC_NUM_WORKER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(clients, "_shared", None)
    monkeypatch.setattr(clients, "_upcoming", StoreNumbers())


def network(**named: Any) -> Any:
    net = mx.gluon.nn.Dense(1, in_units=2, **named)
    net.initialize()
    return net


def trainer(net: Any, store: Any = "byteps") -> Any:
    return mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 1}, kvstore=store)


def step(net: Any, trainer: Any) -> None:
    array = mx.np.array if MAJOR_VERSION >= 2 else mx.nd.array
    with mx.autograd.record():
        loss = net(array([[1.0, 2.0]]))
    loss.backward()
    trainer.step(1)


def test_first_steps_in_another_order(run_workers: Callable[..., list[Any]]) -> None:
    """Trainers that are made in one order and first stepped in another get their own sums, without a deadlock."""
    runs = run_workers("order.py", "ab/ab,ba/0", "ba/ab,ba/0", PSUM_ROUND_TIMEOUT="20")
    assert [run.check().splitlines() for run in runs] == [["-2.0", "-200.0"] * 2] * 2


@needs_names
def test_made_in_another_order(run_workers: Callable[..., list[Any]]) -> None:
    """Trainers of other networks than on other ranks are not mixed up: an error shows the parameters of both sides.

    Nobody can tell whether the ranks make Trainers in different orders or one rank has made another network before,
    which MXNet has counted in its names. It works with networks that have names of their own.
    """
    cases = ["ab,ba/ab/0", "ab,ba/ab,ba/0", "ab/ab/0,1", "ab/ab,ba/0,1/prefixes"]
    # The parameters of the first and the second network on both ranks.
    pairs = [(0, 1), (0, 1), (0, 1), (0, 1), (0, 1), (1, 2)]
    for run in run_workers("order.py", *cases, PSUM_ROUND_TIMEOUT="20"):
        *errors, first, second = run.check().splitlines()
        for error, pair in zip(errors, pairs, strict=True):
            assert "ranks disagree on key '0" in error
            for number in pair:
                assert f"for dense{number}_weight" in error
            assert "in the same order on all ranks" in error
            assert "a name of its own (in MXNet a prefix)" in error
        assert (first, second) == ("-2.0", "-200.0")


def test_numbers_are_those_of_the_program(unconnected: None) -> None:
    """Trainers and stores are numbered together, in the order in which they are made, whatever is stepped first."""
    nets = [network() for _ in range(3)]
    first = trainer(nets[0])
    store = mx.kv.create("byteps")
    second = trainer(nets[1])
    given = trainer(nets[2], store)
    for net, made in ((nets[1], second), (nets[2], given), (nets[0], first)):
        step(net, made)
    assert [made._kvstore._store.number for made in (first, given, second)] == [0, 1, 2]
    assert store._store.number == 1
    mx.nd.waitall()
    clients.shared_client().close()


def test_numbers_after_a_closed_client(unconnected: None) -> None:
    """A process that joins another job counts from 0 again. A Trainer made before does not collide with one made
    since."""
    net = network()
    early = trainer(net)
    mx.kv.create("byteps")
    clients.shared_client().close()
    late = trainer(network())
    assert late._kvstore_params["kvstore"].number.value == 0
    step(net, early)
    assert early._kvstore._store.number == 1
    mx.nd.waitall()
    clients.shared_client().close()


def test_a_trainer_connects_in_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a Trainer with the name of a store joins no job, so it may be made before the process forks."""

    def refuse() -> None:
        raise AssertionError("joined the job")

    monkeypatch.setattr(kvstore, "shared_client", refuse)
    net = network()
    made = trainer(net, "BytePS")
    given = made._kvstore_params["kvstore"]
    assert isinstance(given, NumberedName)
    assert given == "BytePS"
    with pytest.raises(AssertionError, match="joined the job"):
        step(net, made)


def test_labels(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Trainer's operations are labelled with parameters, with the store's name, an instance, and a plain list."""
    client.peers = lambda ticket: ticket.value
    monkeypatch.setattr(kvstore, "shared_client", lambda: client)
    store = BytePS(client)
    for given in ("byteps", store):
        net = network()
        step(net, trainer(net, given))
        expected = sorted(net.collect_params().keys())
        tickets, client.reserved = client.reserved, []
        assert [ticket.operation for ticket in tickets] == [Operation.BROADCAST] * 2 + [Operation.SUM] * 2
        assert [ticket.label for ticket in tickets] == expected * 2
    net = network()
    step(net, mx.gluon.Trainer([net.weight, net.bias], "sgd", kvstore=store))
    assert [ticket.label for ticket in client.reserved] == [net.weight.name, net.bias.name] * 2
    client.reserved = []
    # A program's own use of the store has no label.
    store.pushpull(0, mx.nd.ones((1, 2)))
    assert client.reserved[0].label == ""


def test_labels_with_a_dictionary(client: Any) -> None:
    """Labels are the program's own names if it gives a dictionary, not those that MXNet has counted."""
    client.peers = lambda ticket: ticket.value
    net = network()
    parameters = {"output.weight": net.weight, "output.bias": net.bias}
    step(net, mx.gluon.Trainer(parameters, "sgd", kvstore=BytePS(client)))
    assert [ticket.label for ticket in client.reserved] == ["output.bias", "output.weight"] * 2


def test_two_trainers_take_turns_in_one_store(local_store: BytePS) -> None:
    """Two Trainers that take turns in one store get an error: other orders on other ranks would mix their sums."""
    nets = [network(prefix=f"{name}_") if MAJOR_VERSION < 2 else network() for name in "ab"]
    parameters = [
        {f"{name}_weight": net.weight, f"{name}_bias": net.bias} for name, net in zip("ab", nets, strict=True)
    ]
    first, second = (mx.gluon.Trainer(each, "sgd", kvstore=local_store) for each in parameters)
    step(nets[0], first)
    step(nets[1], second)
    with pytest.raises(
        ValueError, match=r"'0' stood for a_bias, then for b_bias.*Give each Trainer a store of its own"
    ):
        step(nets[0], first)


def test_one_trainer_after_another_in_one_store(local_store: BytePS) -> None:
    """One store may serve one Trainer after another, as for the folds of a cross-validation."""
    for _ in range(3):
        net = network()
        made = trainer(net, local_store)
        step(net, made)
        step(net, made)


def test_two_trainers_of_other_shapes_in_one_store(local_store: BytePS) -> None:
    """The error for two Trainers in one store with different shapes has the names of both parameters."""
    first, second = network(), mx.gluon.nn.Dense(3, in_units=2)
    second.initialize()
    step(first, mx.gluon.Trainer({"a": first.weight}, "sgd", kvstore=local_store))
    expected = r"float32 \(1, 2\) for a before, and is float32 \(3, 2\) for b now; give each Trainer a store of its own"
    with pytest.raises(ValueError, match=expected):
        step(second, mx.gluon.Trainer({"b": second.weight}, "sgd", kvstore=local_store))
