"""Tensors that are summed again and again move to memory that aggregators read from."""

import contextlib
import functools
import gc
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pytest
import torch

from psum import client as psum
from psum.aggregator import Settings
from psum.planes import Limit
from psum.torch import staging
from psum.torch.staging.shared_storages import SharedStorages
from psum.torch.tensors import unmarked_array
from tests.integration.conftest import Fleet
from tests.shared_memory import emptied_directory
from tests.torch.staging.test_transfer import TYPES, result_of

#: A little more than the least size that moves: not a number of whole pages, of shards or of elements of 8 bytes.
ELEMENTS: Final = (3 << 20) // 4 + 101


@pytest.fixture(scope="module")
def directory() -> Iterator[pathlib.Path]:
    """A directory in memory for the tests of this module. It must be empty after them."""
    with emptied_directory() as made:
        yield made


@pytest.fixture(scope="module")
def sharing(directory: pathlib.Path) -> Iterator[Fleet]:
    """An aggregator."""
    fleet = Fleet([Settings(listen=("127.0.0.1:0",), shm_directory=str(directory))])
    yield fleet
    fleet.close()


@pytest.fixture
def client(sharing: Fleet, request: pytest.FixtureRequest) -> Iterator[psum.Client]:
    """The only worker of a job."""
    with sharing.worker(0, 1, staging=True, job=request.node.name) as client:
        yield client


def summed(client: psum.Client, tensor: torch.Tensor, key: str = "w") -> None:
    """Sums a tensor over all ranks, in place."""
    result_of(functools.partial(staging.push_pull, client.store(), key, tensor, movable=True))


def placed(client: psum.Client, tensor: torch.Tensor) -> int | None:
    """Where a tensor lies in the client's staging memory, after it was summed."""
    use = SharedStorages.of(client)._use_of(tensor)
    return None if use is None or use.place is None else use.place.offset


def staged(client: psum.Client, offset: int, size: int) -> bytes:
    """What the staging memory holds."""
    memory = client._memory.staging
    assert memory is not None
    return bytes(memory._segment.view[offset : offset + size])


def held(directory: pathlib.Path) -> int:
    """The bytes of memory that the directory's files take."""
    return sum(path.stat().st_blocks * 512 for path in directory.iterdir())


def test_sums_of_all_types_before_and_after(sharing: Fleet) -> None:
    """From the third sum on, tensors lie in the staging memory, and all views of them too. The sums are right."""

    def work(client: psum.Client) -> list[tuple[bool, ...]]:
        store, found = client.store(), []
        for dtype in TYPES:
            tensor = torch.empty(ELEMENTS, dtype=dtype)
            pieces = tensor[:1000], tensor[1000:].view(-1, 1)
            places = []
            for turn in range(5):
                values = (torch.arange(ELEMENTS) % 5 + turn).to(torch.uint8)
                tensor.copy_(values * (client.rank + 1) if dtype is not torch.bool else (values > 5) & client.rank > 0)
                expected = values * 3 if dtype is not torch.bool else (values > 5).to(torch.uint8)
                result_of(functools.partial(staging.push_pull, store, str(dtype), tensor, movable=True))
                together = torch.cat([piece.reshape(-1) for piece in pieces]).to(torch.uint8)
                assert torch.equal(together, expected), (dtype, turn)
                places.append(placed(client, tensor) is not None)
            found.append(tuple(places))
        return found

    for rank in sharing.on_every_rank(2, work, staging=True, job="types"):
        for dtype, found in zip(TYPES, rank, strict=True):
            is_large = dtype.itemsize * ELEMENTS >= 1 << 20
            assert found == (False, False, is_large, is_large, is_large), dtype


def test_the_aggregator_reads_the_tensors_own_memory(client: psum.Client) -> None:
    """What the tensor holds, the staging memory holds at the tensor's place."""
    tensor = torch.zeros(ELEMENTS)
    for _ in range(3):
        summed(client, tensor)
    tensor.copy_(torch.arange(ELEMENTS))
    offset = placed(client, tensor)
    assert offset is not None
    assert staged(client, offset, tensor.nbytes) == tensor.numpy().tobytes()


@pytest.mark.parametrize("why", ["small", "a part", "NumPy knows it", "of a file", "shared"])
def test_what_does_not_move(client: psum.Client, why: str, tmp_path: pathlib.Path) -> None:
    """Memory stays where it is if moving does not pay, or if somebody else may know where it lies."""
    tensor = torch.zeros(100 if why == "small" else ELEMENTS)
    kept = tensor.numpy() if why == "NumPy knows it" else None
    if why == "a part":
        tensor = tensor[1:]
    elif why == "of a file":
        tensor = torch.from_file(str(tmp_path / "file"), shared=True, size=ELEMENTS)
    elif why == "shared":
        tensor.share_memory_()
    address = tensor.data_ptr()
    for _ in range(5):
        summed(client, tensor)
    assert tensor.data_ptr() == address
    assert placed(client, tensor) is None
    del kept


@pytest.mark.parametrize("why", ["off", "no room", "another plane"])
def test_clients_that_move_nothing(sharing: Fleet, why: str) -> None:
    """With the setting off, without enough shared memory, and on other planes, tensors are copied as ever."""
    givens: dict[str, dict[str, Any]] = {
        "off": {"torch_share_buffers": False},
        "no room": {"shm_limit": Limit(bytes=0)},
        "another plane": {"plane": "direct"},
    }
    given = givens[why]
    with sharing.worker(0, 1, staging=True, job=why, **given) as client:
        tensor = torch.ones(ELEMENTS)
        for _ in range(5):
            summed(client, tensor)
        assert placed(client, tensor) is None
        assert torch.equal(tensor, torch.ones(ELEMENTS))


def test_pytorchs_own_file_needs_room_too(client: psum.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """psum gives its block back if PyTorch cannot write the file through which it moves."""
    monkeypatch.setattr(client, "room", lambda size: contextlib.nullcontext("it is full"))
    tensor = torch.ones(ELEMENTS)
    for _ in range(5):
        summed(client, tensor)
    assert placed(client, tensor) is None
    block = client.allocate(4096)
    assert block is not None
    assert block.offset == 0


def test_what_is_dropped_leaves_nothing_behind(client: psum.Client, directory: pathlib.Path) -> None:
    """Of 300 tensors that were moved and dropped, no memory, no addresses and no descriptors are left."""
    # What earlier tests left in cycles may go meanwhile, with its descriptors.
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    before = held(directory)
    shared = SharedStorages.of(client)
    for _ in range(300):
        tensor = torch.ones((1 << 20) // 4)
        for _ in range(3):
            array, offset = shared.memory_of(tensor)
        assert offset == 0
        del tensor, array
    assert held(directory) == before
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert len(shared._uses) == 0
    assert "psum" not in "".join(name for name in os.listdir("/dev/shm") if name.startswith("torch_"))


def test_two_tensors_never_share_a_place(client: psum.Client) -> None:
    """A place is used again only after its tensor is gone, not before."""
    tensors = [torch.full((ELEMENTS,), float(number)) for number in range(4)]
    for _ in range(3):
        for number, tensor in enumerate(tensors):
            summed(client, tensor, f"w{number}")
    places = [placed(client, tensor) for tensor in tensors]
    assert len({*places, None}) == 5
    del tensor, tensors[1]
    gc.collect()
    new = torch.full((ELEMENTS,), 9.0)
    for _ in range(3):
        summed(client, new, "new")
    assert placed(client, new) == places[1]
    assert [float(tensor.sum()) / ELEMENTS for tensor in (*tensors, new)] == [0.0, 2.0, 3.0, 9.0]


def test_after_a_failure_the_tensor_is_its_owners_alone(client: psum.Client) -> None:
    """An aggregator may still read what was contributed to a sum that has failed: what the program then writes to the
    tensor does not change that, and nothing else comes to its place."""
    tensor = torch.zeros(ELEMENTS)
    for _ in range(3):
        summed(client, tensor)
    offset = placed(client, tensor)
    assert offset is not None
    tensor.fill_(7)
    contributed = tensor.numpy().tobytes()
    failed: list[psum.PsumError | None] = []
    client.fail(psum.PsumError("all is lost"))
    client.catch_up(10)
    with pytest.raises(psum.PsumError, match="all is lost"):
        staging.push_pull(client.store(), "other", tensor, movable=True, done=failed.append)
    SharedStorages.of(client).withdraw(tensor)
    assert torch.equal(tensor, torch.full((ELEMENTS,), 7.0))
    tensor.fill_(8)
    assert staged(client, offset, tensor.nbytes) == contributed
    del tensor
    gc.collect()
    other = client.allocate(4096)
    assert other is not None
    assert other.offset != offset


def test_a_failed_sum_withdraws_its_tensor(sharing: Fleet) -> None:
    """A sum that fails while it waits for another rank takes the tensor out of the staging memory before the program
    hears of it."""
    started = threading.Event()

    def work(client: psum.Client) -> bool:
        store = client.store()
        tensor = torch.ones(ELEMENTS)
        for _ in range(3):
            result_of(functools.partial(staging.push_pull, store, "w", tensor, movable=True))
        moved = placed(client, tensor) is not None
        ended, errors = threading.Event(), []

        def done(error: psum.PsumError | None) -> None:
            errors.append((error, placed(client, tensor)))
            ended.set()

        if client.rank == 0:
            staging.push_pull(store, "w", tensor, movable=True, done=done)
            started.set()
        else:
            started.wait(20)
            store.reserve("w", shape=(ELEMENTS,), element_type=psum.ElementType.FLOAT32).abort("no value")
            return moved
        assert ended.wait(20)
        ((error, place),) = errors
        assert isinstance(error, psum.AbortedError)
        assert place is None
        return moved

    assert sharing.on_every_rank(2, work, staging=True, job="failed") == [True, True]


def test_a_tensor_outlives_the_client(sharing: Fleet, directory: pathlib.Path) -> None:
    """The memory of a tensor stays valid after the client has left, which leaves no file."""
    with sharing.worker(0, 1, staging=True, job="outlived") as client:
        tensor = torch.ones(ELEMENTS)
        for _ in range(3):
            summed(client, tensor)
        assert placed(client, tensor) is not None
        memory = client._memory.staging
        assert memory is not None
        assert (directory / memory.name).exists()
    assert not (directory / memory.name).exists()
    tensor += 1
    assert torch.equal(tensor, torch.full((ELEMENTS,), 2.0))


def test_a_forked_child_sees_the_tensor_and_frees_nothing(client: psum.Client) -> None:
    """Children, such as those of a DataLoader, may read the tensor, drop it, and end."""
    tensor = torch.full((ELEMENTS,), 5.0)
    for _ in range(3):
        summed(client, tensor)
    assert placed(client, tensor) is not None
    tensor.fill_(6)
    array = tensor.numpy()
    child = os.fork()
    if not child:
        status = 0 if np.all(array == 6) else 1
        del tensor, array
        gc.collect()
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(tensor, torch.full((ELEMENTS,), 6.0))
    summed(client, tensor)
    assert torch.equal(tensor, torch.full((ELEMENTS,), 6.0))


def test_sending_it_to_another_process_is_an_error(client: psum.Client) -> None:
    """PyTorch sends the file of a shared tensor. Here it gets an error instead of other memory."""
    tensor = torch.ones(ELEMENTS)
    for _ in range(3):
        summed(client, tensor)
    descriptor, size = tensor.untyped_storage()._share_fd_cpu_()
    with pytest.raises(RuntimeError):
        torch.UntypedStorage._new_shared_fd_cpu(os.dup(descriptor), size)


def test_it_may_be_moved_once_more(client: psum.Client) -> None:
    """PyTorch moves a tensor again if it is sent to another process as a file with a name. psum then copies it, and
    never takes what its old place holds."""
    tensor = torch.ones(ELEMENTS)
    for _ in range(3):
        summed(client, tensor)
    assert placed(client, tensor) == 0
    use = SharedStorages.of(client)._use_of(tensor)
    assert use is not None
    assert use.place is not None
    # As if it had been elsewhere before. PyTorch's own way leaves a process.
    use.place = use.place._replace(address=use.place.address + 4096)
    assert SharedStorages.of(client).memory_of(tensor)[1] is None
    tensor = torch.ones(ELEMENTS)
    tensor.fill_(2)
    summed(client, tensor)
    assert placed(client, tensor) is None
    assert torch.equal(tensor, torch.full((ELEMENTS,), 2.0))
    block = client.allocate(4096)
    assert block is not None
    assert block.offset == 0


@pytest.mark.parametrize("dtype", TYPES)
def test_unmarked_arrays(dtype: torch.dtype) -> None:
    """They show the tensor's memory and keep it alive; the storage can be resized all the same."""
    tensor = torch.arange(12).to(dtype)
    array = unmarked_array(tensor)
    assert array.tobytes() == bytes(tensor.view(torch.uint8).tolist())
    array[:] = 0
    assert not tensor.any()
    assert tensor.untyped_storage().resizable()
    del tensor
    gc.collect()
    assert not np.any(array)
