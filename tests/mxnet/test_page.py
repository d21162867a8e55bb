"""The documentation page of mxnet.kvstore.byteps.BytePS, member by member, in a job of one worker."""

import warnings
from typing import Any

import pytest

from psum.mxnet import BytePS, integration
from psum.mxnet.compat import mx


@pytest.fixture
def kv(local_store: BytePS) -> BytePS:
    return local_store


def test_create(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mx.kv.create('byteps')` gives this store, in any case; with nothing configured it needs no aggregator."""
    for name in ("PSUM_AGGREGATORS", "PSUM_NUM_WORKERS", "DMLC_NUM_WORKER"):
        monkeypatch.delenv(name, raising=False)
    for name in ("byteps", "BytePS"):
        kv = mx.kv.create(name)
        assert type(kv) is BytePS
        assert isinstance(kv, mx.kvstore.KVStoreBase)
        assert (kv.rank, kv.num_workers) == (0, 1)
    assert mx.kvstore.BytePS is BytePS


def test_registration_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replacing MXNet 2's store of the same name causes no warning."""
    for module in map(integration._find, integration._USERS):
        for name in ("_create_kvstore", "_initialize_kvstore"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(module, name))
    for owner, name in [(mx.gluon.Trainer, "__init__"), (mx.gluon.Trainer, "_update")]:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    if hasattr(mx, "mod"):
        monkeypatch.setattr(mx.mod.Module, "update", mx.mod.Module.update)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        integration.install()
    assert mx.kvstore.KVStoreBase.kv_registry["byteps"] is BytePS


def test_examples(kv: BytePS) -> None:
    """The examples of the page give what it says."""
    shape = (2, 3)
    a = mx.nd.zeros(shape)
    kv.broadcast("3", mx.nd.ones(shape) * 2, out=a)
    assert a.asnumpy().tolist() == [[2, 2, 2], [2, 2, 2]]
    kv.pushpull("3", mx.nd.ones(shape) * 8, out=a)
    assert a.asnumpy().tolist() == [[8, 8, 8], [8, 8, 8]]


def test_broadcast(kv: BytePS) -> None:
    """The value goes to every out; without out it is stored in value."""
    value, outs = mx.nd.array([1.0, 2.0]), [mx.nd.zeros((2,), ctx=mx.cpu(n)) for n in range(3)]
    kv.broadcast(1, value, outs)
    assert [out.asnumpy().tolist() for out in outs] == [[1, 2]] * 3
    kv.broadcast(2, value, None)
    assert value.asnumpy().tolist() == [1, 2]
    kv.broadcast(3, value, value, priority=5)
    assert value.asnumpy().tolist() == [1, 2]


def test_pushpull(kv: BytePS) -> None:
    """The sum is written to out, or without out to value; lists are added up."""
    value, out = mx.nd.array([1.0, 2.0]), mx.nd.zeros((2,))
    kv.pushpull(1, value, out, 3)
    assert out.asnumpy().tolist() == [1, 2]
    kv.pushpull(2, [value, out])
    assert [value.asnumpy().tolist(), out.asnumpy().tolist()] == [[2, 4], [2, 4]]


@pytest.mark.parametrize("capability", ["optimizer", "anything"])
def test_is_capable(capability: str) -> None:
    """The store has no capabilities, also as a class."""
    assert BytePS.is_capable(capability) is False


@pytest.mark.parametrize(
    ("member", "arguments", "advice"),
    [
        ("set_optimizer", ("sgd",), "Trainer and Module"),
        ("save_optimizer_states", ("file", True), r"Trainer\.save_states"),
        ("load_optimizer_states", ("file",), r"Trainer\.load_states"),
        ("push", (3, None), r"kv\.pushpull\(key, value, out\)"),
        ("pull", (3, None), r"kv\.pushpull\(key, value, out\).*kv\.broadcast"),
        ("row_sparse_pull", (3, None), "sparse_grad=False"),
        ("_set_updater", (None,), "Update there what pushpull gives"),
        ("_send_command_to_servers", (0, ""), "psum status"),
    ],
)
def test_not_implemented(kv: BytePS, member: str, arguments: tuple[Any, ...], advice: str) -> None:
    """Methods that the page lists as not implemented raise an error that says what to do instead."""
    with pytest.raises(NotImplementedError, match=advice):
        getattr(kv, member)(*arguments)


def test_every_member_of_a_store_of_mxnet_is_there() -> None:
    """Undocumented methods of MXNet's stores work, or say what to use instead."""
    assert {name for name in vars(mx.kvstore.KVStore) if not name.startswith("__")} - set(dir(BytePS)) == set()


@pytest.mark.parametrize("member", ["init", "broadcast", "pushpull"])
@pytest.mark.parametrize("keys", [[1, 2], (1, 2), ["a", "b"]])
def test_lists_of_keys(kv: BytePS, member: str, keys: Any) -> None:
    """A list of keys, which MXNet's own stores take, is an error that says what to write instead."""
    values = [mx.nd.ones((2,)), mx.nd.zeros((3,))]
    arguments = [keys, values] if member == "init" else [keys, values, values]
    with pytest.raises(
        TypeError, match=rf"^{member} of the keys .*one key a call.*zip\(keys, values\): kv\.{member}\("
    ):
        getattr(kv, member)(*arguments)


def test_barrier(kv: BytePS) -> None:
    """A barrier in a job of one worker returns at once, under MXNet's own name too."""
    kv.barrier()
    kv._barrier()


def test_properties(client: Any) -> None:
    """Rank, number of workers and local rank are the client's; the type is 'byteps'."""
    client.rank, client.num_workers, client.local_rank = 5, 8, 1
    kv = BytePS(client)
    assert (kv.rank, kv.num_workers, kv.local_rank, kv.type) == (5, 8, 1, "byteps")


def test_gradient_compression(kv: BytePS) -> None:
    """Parameters without compression are accepted. Others are an error that says what to do instead."""
    kv.set_gradient_compression(None)
    kv.set_gradient_compression({})
    kv.set_gradient_compression({"type": "none"})
    with pytest.raises(NotImplementedError, match=r"2bit.*float16"):
        kv.set_gradient_compression({"type": "2bit", "threshold": 0.5})
