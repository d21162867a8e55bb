"""Arrays in memory that aggregators read from: same sums without a copy, in memory that lives as long as its arrays."""

import gc
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from psum import client as psum
from psum.planes import Limit, Slots, shm
from tests.polling import wait_until
from tests.processes import running

#: Elements of arrays of float32 that have one shard, or several.
SIZES = (20_000, 700_000, 1_000_001)


def held_bytes(directory: pathlib.Path) -> int:
    """How much memory files in a directory take, also those without a name that this process has open."""
    seen = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{entry}").startswith(str(directory)):
                status = os.stat(f"/proc/self/fd/{entry}")
                seen[status.st_ino] = status.st_blocks * 512
        except OSError:
            continue
    return sum(seen.values())


def sums(client: psum.Client) -> list[bytes]:
    """The values after some rounds: in place, in parts of one array, and with sums in other arrays."""
    chance = np.random.default_rng(client.rank)
    store = client.store()
    arrays = [client.empty(size) for size in SIZES]
    pieces = client.zeros((3, 50_000), np.float64)
    apart = store.empty_like(arrays[1])
    for array in arrays:
        array[:] = chance.standard_normal(array.size)
    pieces[:] = chance.standard_normal(pieces.shape)
    for _ in range(3):
        futures = [store.push_pull_async(i, array) for i, array in enumerate(arrays)]
        futures += [store.push_pull_async(f"part {i}", piece) for i, piece in enumerate(pieces)]
        for future in futures:
            future.result(20)
        store.push_pull("apart", arrays[1], apart)
        store.push_pull("bytes", arrays[2].data[7:500_007], out=apart.data[:500_000])
        for array in arrays:
            array *= np.float32(0.25)
    root = store.zeros_like(pieces)
    root += client.rank + 1
    store.broadcast("root", root)
    return [array.tobytes() for array in (*arrays, pieces, apart, root)]


def test_nothing_is_copied_to_where_aggregators_read(
    directory: pathlib.Path, make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No payload takes room in the worker's segment, and the sums are the same bits as with messages."""
    inline = make_fleet(2, shm_directory=str(directory)).on_every_rank(2, sums, plane="inline")
    taken: list[int] = []

    class NoSlots(Slots):
        def take(self, size: int) -> int | None:
            taken.append(size)
            return None

    monkeypatch.setattr(shm, "Slots", NoSlots)
    assert make_fleet(2, shm_directory=str(directory)).on_every_rank(2, sums, staging=True) == inline
    assert taken == []


def test_connections_that_break_do_no_harm(directory: pathlib.Path, make_fleet: Callable[..., Any]) -> None:
    """What has no sum yet is sent again from the arrays, with the same bits."""
    undisturbed = make_fleet(2, shm_directory=str(directory)).on_every_rank(2, sums, staging=True)
    fleet = make_fleet(2, shm_directory=str(directory))
    with fleet.cut_often(0.25):
        assert fleet.on_every_rank(2, sums, staging=True) == undisturbed


@pytest.mark.parametrize("why", ["inline", "direct", "no staging", "full", "small"])
def test_arrays_are_ordinary_where_no_memory_is_shared(
    directory: pathlib.Path, make_fleet: Callable[..., Any], why: str
) -> None:
    """They are made and summed all the same."""
    given: dict[str, Any] = {"plane": why} if why in ("inline", "direct") else {}
    if why == "full":
        given["shm_limit"] = Limit.parse("0%")
    fleet = make_fleet(1, shm_directory=str(directory))
    with fleet.worker(0, 1, staging=why != "no staging", **given) as client:
        array = client.zeros(1000 if why == "small" else 1_000_000)
        assert client.place_of(array) is None
        array += 2
        client.store().push_pull("w", array)
        assert (array == 2).all()


def test_made_and_dropped_ten_thousand_times_they_leave_nothing(
    directory: pathlib.Path, make_fleet: Callable[..., Any]
) -> None:
    """Each new array takes the memory of earlier ones, and the last one gives it back."""
    fleet = make_fleet(1, shm_directory=str(directory))
    with fleet.worker(0, 1, staging=True) as client:
        client.store().push_pull("w", client.empty(20_000))
        gc.collect()
        before = held_bytes(directory)
        store = client.store()
        kept: list[npt.NDArray[Any]] = []
        for number in range(10_000):
            array = client.zeros(20_000 + number % 7 * 1024)
            assert array[0] == 0
            assert client.place_of(array) is not None
            array[0] = number
            if number % 1000 == 0:
                array[:] = 1
                store.push_pull(f"key {number % 7}", array)
            # A few live at any time, in another order than they were made.
            kept.append(array)
            if len(kept) > 5:
                del kept[number % 5]
        del array
        kept.clear()
        gc.collect()
        client.empty(20_000)
        assert held_bytes(directory) <= before + (1 << 20)
        assert client.arrays.count == 0


def test_shapes_and_types_are_those_of_numpy(directory: pathlib.Path, make_fleet: Callable[..., Any]) -> None:
    """Whether an array is shared or not; what psum cannot sum is refused."""
    fleet = make_fleet(1, shm_directory=str(directory))
    with fleet.worker(0, 1, staging=True) as client:
        for shape in (
            20_000,
            np.int32(70_000),
            (200, 300),
            [2, 3, 40_000],
            (np.int32(70_000), np.int32(70_000), 0),
            (),
            0,
        ):
            array = client.zeros(shape, "float32")
            like = np.zeros(shape, np.float32)
            assert (array.shape, array.dtype, array.flags.c_contiguous) == (like.shape, like.dtype, True)
            assert (client.place_of(array) is not None) == (like.nbytes >= 65_536)
        assert client.empty(100_000, "bfloat16").dtype == np.uint16
        with pytest.raises(TypeError, match="psum cannot sum elements of type"):
            client.empty(100_000, complex)
        for wrong in (-100_000, (-200, -2000), (200.0, 3)):
            with pytest.raises((TypeError, ValueError)):
                client.empty(wrong)
        assert client.arrays.count == 0


def test_they_cannot_be_resized_in_place(directory: pathlib.Path, make_fleet: Callable[..., Any]) -> None:
    """NumPy refuses it, and a larger copy lies elsewhere."""
    fleet = make_fleet(1, shm_directory=str(directory))
    with fleet.worker(0, 1, staging=True) as client:
        array = client.zeros(20_000)
        for size in (10_000, 40_000):
            with pytest.raises(ValueError, match="resize"):
                array.resize(size)
        assert client.place_of(np.resize(array, 40_000)) is None
        assert client.place_of(array.reshape(2, 10_000)) is not None


def test_a_view_keeps_the_memory(directory: pathlib.Path, make_fleet: Callable[..., Any]) -> None:
    """Other arrays get it only when the last array, view or memoryview has ended."""
    fleet = make_fleet(1, shm_directory=str(directory))
    with fleet.worker(0, 1, staging=True) as client:
        array = client.empty((100, 1000), np.float64)
        place = client.place_of(array)
        assert place is not None
        offset = place.offset
        del place
        view: Any = array.T[3:5].view(np.int64)
        array[:] = 7
        del array
        other = client.empty((100, 1000), np.float64)
        other[:] = 0
        assert (view.view(np.float64) == 7).all()
        view = np.frombuffer(view.base.data, np.uint8).data
        again = client.empty((100, 1000), np.float64)
        found = client.place_of(view)
        assert found is not None
        assert found.offset == offset
        del view, found, again, other
        fresh = client.place_of(client.empty((100, 1000), np.float64))
        assert fresh is not None
        assert fresh.offset == offset


def test_they_outlive_their_client(directory: pathlib.Path, make_fleet: Callable[..., Any]) -> None:
    """Their content stays, they can be written to, and the next client copies what is pushed from them."""
    fleet = make_fleet(1, shm_directory=str(directory))
    with fleet.worker(0, 1, staging=True) as client:
        array = client.zeros(1_000_000)
        array += 3
        client.store().push_pull("w", array)
    # The aggregator removes the names of its memory when it has heard that the worker has left.
    wait_until(lambda: list(directory.iterdir()) == [])
    assert (array == 3).all()
    array *= 2
    assert client.place_of(array) is None
    client.empty(1_000_000)[:] = 1
    with fleet.worker(0, 1, staging=True) as client:
        assert client.place_of(array) is None
        client.store().push_pull("w", array)
    assert (array == 6).all()


def test_memory_of_a_failed_operation_stays_as_it_is(directory: pathlib.Path, make_fleet: Callable[..., Any]) -> None:
    """A rank gives up, and changes its array at once. The sum of the others has what it had pushed."""
    fleet = make_fleet(1, shm_directory=str(directory))
    zero, one = (fleet.worker(rank, 2, staging=True) for rank in range(2))
    arrays = [client.zeros(1_000_000) for client in (zero, one)]
    neighbours = arrays[0][500_000:]
    for array in arrays:
        array += 1
    try:
        stores = zero.store(), one.store()
        failing = stores[0].push_pull_async("w", arrays[0][:500_000])
        wait_until(
            lambda: zero.load().waiting_shards == zero.load().under_way_bytes == 0 and zero.load().operations > 0
        )
        # The other rank does not hear of it.
        zero.fail(psum.PsumError("given up"))
        with pytest.raises(psum.PsumError):
            failing.result(20)
        arrays[0][:] = 100
        assert zero.place_of(neighbours) is None
        assert (arrays[0] == 100).all()
        stores[1].push_pull("w", arrays[1][:500_000])
        assert set(arrays[1][:500_000]) == {2.0}
    finally:
        for client in (zero, one):
            client.close(0.5)


def test_of_a_closed_client_the_others_sum_what_it_pushed(
    directory: pathlib.Path, make_fleet: Callable[..., Any]
) -> None:
    """A rank closes its client before the others have pushed, and changes its array."""
    fleet = make_fleet(1, shm_directory=str(directory))
    zero, one = (fleet.worker(rank, 2, staging=True) for rank in range(2))
    arrays = [client.zeros(1_000_000) for client in (zero, one)]
    for array in arrays:
        array += 1
    given_up = zero.store().push_pull_async("w", arrays[0])
    wait_until(lambda: zero.load().waiting_shards == zero.load().under_way_bytes == 0 and zero.load().operations > 0)
    (shards,) = [
        list(key.shards.values())
        for server in fleet.servers
        for job in server._service.registry.jobs.values()
        for key in job.keys.values()
    ]
    held = [contribution for shard in shards for contribution in shard.contributions.values()]
    zero.close(0.1)
    assert isinstance(given_up.exception(), psum.ClosedError)
    arrays[0][:] = 100
    assert held
    assert all(set(np.frombuffer(contribution, np.float32)) == {1.0} for contribution in held)
    one.close(0.1)


_FORKING = """
import gc, os, sys
import numpy as np
from psum import client as psum

with psum.connect() as client:
    store = client.store()
    array = client.zeros(1_000_000)
    dropped = client.zeros(1_000_000)
    assert client.place_of(array) and client.place_of(dropped)
    array += 1
    dropped += 2
    child = os.fork()
    if not child:
        status = 1
        try:
            assert (array == 1).all()
            array[:] = 100
            dropped[:] = 100
            del dropped
            gc.collect()
            try:
                client.empty(1_000_000)
            except psum.ForkedError:
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert (array == 1).all()
    assert (dropped == 2).all()
    store.push_pull("w", array)
    assert (array == 1).all()
# Also when the client is closed.
child = os.fork()
if not child:
    array[:] = 100
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert (array == 1).all()
print("done")
"""


def environment(fleet: Any, directory: pathlib.Path) -> dict[str, str]:
    """The environment of a worker process."""
    return os.environ | {"PSUM_AGGREGATORS": fleet.addresses[0], "PSUM_SHM_DIRECTORY": str(directory)}


def test_a_forked_process_changes_nothing(directory: pathlib.Path, make_fleet: Callable[..., Any]) -> None:
    """What it writes stays its own, and when it drops arrays and ends, its parent's stay."""
    fleet = make_fleet(1, shm_directory=str(directory))
    done = subprocess.run(
        [sys.executable, "-c", _FORKING], env=environment(fleet, directory), capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


def test_nothing_is_left_of_a_worker_after_kill_9(directory: pathlib.Path, make_fleet: Callable[..., Any]) -> None:
    """The aggregator removes what it had in use."""
    fleet = make_fleet(1, shm_directory=str(directory), worker_timeout=0.2)
    program = (
        "import psum.client as psum, time\n"
        "client = psum.connect()\n"
        "array = client.zeros(1_000_000)\n"
        "assert client.place_of(array)\n"
        "client.store().push_pull('w', array)\n"
        "print(flush=True)\n"
        "time.sleep(60)"
    )
    with running([sys.executable, "-c", program], env=environment(fleet, directory), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        process.kill()
    wait_until(lambda: not list(directory.iterdir()))


def test_an_exception_in_a_step_frees_its_arrays(directory: pathlib.Path, make_fleet: Callable[..., Any]) -> None:
    """Once the traceback that holds them is gone, others get the memory. A value that is refused keeps none."""
    fleet = make_fleet(1, shm_directory=str(directory))
    with fleet.worker(0, 1, staging=True) as client:
        store = client.store()
        store.push_pull("w", client.zeros(1_000_000))

        def step() -> None:
            array = client.zeros(500_000)
            store.push_pull("w", array)

        with pytest.raises(ValueError, match="w"):
            step()
        gc.collect()
        assert client.arrays.count == 0
