"""What goes wrong is an error in psum's words on every rank that is left, and soon."""

import contextlib
import os
import signal
import time
from datetime import timedelta
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from psum.client import ClosedError, DisagreementError, ForkedError, PsumError, WorkerLostError
from tests.integration.conftest import Fleet
from tests.torch.ranks import PATIENCE_SECONDS, Ranks, pipe


def different_shapes() -> str:
    with pytest.raises(DisagreementError) as caught:
        dist.all_reduce(torch.ones(3 + dist.get_rank()))
    # The group has failed for the key only.
    dist.barrier()
    return str(caught.value)


def different_dtypes() -> str:
    with pytest.raises(DisagreementError) as caught:
        dist.all_reduce(torch.ones(3, dtype=(torch.float32, torch.float64)[dist.get_rank()]))
    return str(caught.value)


def different_collectives() -> str:
    tensor = torch.ones(3, dtype=torch.uint8)
    call: Any = dist.all_reduce if dist.get_rank() else lambda tensor: dist.reduce(tensor, 0)
    with pytest.raises(DisagreementError) as caught:
        call(tensor)
    return str(caught.value)


def different_gathers() -> str:
    size = 3 + dist.get_rank()
    with pytest.raises(DisagreementError) as caught:
        dist.all_gather([torch.empty(size), torch.empty(size)], torch.ones(size))
    return str(caught.value)


def different_reductions() -> str:
    operators = (dist.ReduceOp.SUM, dist.ReduceOp.AVG, dist.ReduceOp.MIN)
    texts = []
    for number in range(2):
        with pytest.raises(DisagreementError) as caught:
            dist.all_reduce(torch.ones(3 + number), operators[dist.get_rank() + number])
        texts.append(str(caught.value))
    # A sum of bools is made of bytes, and is no sum.
    with pytest.raises(DisagreementError, match="all_reduce of bool of"):
        dist.all_reduce(torch.ones(5, dtype=(torch.bool, torch.uint8)[dist.get_rank()]))
    return "".join(texts)


def a_broadcast_and_a_sum() -> str:
    tensor = torch.ones(3, dtype=torch.uint8)
    with pytest.raises(DisagreementError) as caught:
        dist.all_reduce(tensor) if dist.get_rank() else dist.broadcast(torch.ones(64, dtype=torch.uint8), 1)
    return str(caught.value)


def different_shapes_in_callbacks() -> str:
    def reduce(tensor: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(tensor)
        return tensor

    def reduced(tensor: torch.Tensor) -> Any:
        return dist.all_reduce(torch.ones(1), async_op=True).get_future().then(lambda _: reduce(tensor))

    assert reduced(torch.ones(2)).wait().tolist() == [2.0, 2.0]
    with pytest.raises(RuntimeError) as caught:
        reduced(torch.ones(3 + dist.get_rank())).wait()
    assert reduced(torch.ones(2)).wait().tolist() == [2.0, 2.0]
    return str(caught.value)


def different_shapes_in_a_training() -> str:
    model = DistributedDataParallel(torch.nn.Linear(3, 3), bucket_cap_mb=1e-6)
    model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    for _ in range(3):
        model(torch.ones(1, 3)).sum().backward()
    # Futures have callbacks now.
    assert dist.all_reduce(torch.ones(2), async_op=True).get_future().then(lambda done: done.value()[0].sum()).wait()
    return different_shapes()


def one_more_collective_in_a_training() -> str:
    model = DistributedDataParallel(torch.nn.Linear(3, 3))
    with pytest.raises((DisagreementError, RuntimeError)) as caught:  # noqa: PT012
        for _ in range(3):
            model(torch.ones(1, 3)).sum().backward()
        if dist.get_rank():
            dist.all_reduce(torch.ones(5))
        model(torch.ones(1, 3)).sum().backward()
        dist.barrier()
    return str(caught.value)


@pytest.mark.parametrize(
    ("program", "sides"),
    [
        (different_shapes, ["(3,)", "(4,)"]),
        (different_dtypes, ["float32", "float64"]),
        (different_collectives, ["all_reduce", "reduce of"]),
        (different_gathers, ["rank 0: 12 bytes", "rank 1: 16 bytes"]),
        (different_reductions, ["for all_reduce of 3 ×", "all_reduce with AVG of 4 ×", "all_reduce with MIN of"]),
        (a_broadcast_and_a_sum, ["broadcast of uint8 from rank 1", "all_reduce of 3 × uint8"]),
        (different_shapes_in_callbacks, ["(3,)", "(4,)"]),
        (different_shapes_in_a_training, ["(3,)", "(4,)"]),
        (one_more_collective_in_a_training, ["(5,)", "(12,)"]),
    ],
)
def test_ranks_that_disagree_all_hear_of_it(ranks: Ranks, program: Any, sides: list[str]) -> None:
    """Every rank gets an error that shows both sides."""
    for text in ranks.run(2, program):
        assert all(side in text for side in sides), text


def mistakes() -> None:
    tensor, size = torch.ones(2), dist.get_world_size()
    for root in (size, -1):
        calls: tuple[Any, ...] = (
            lambda root=root: dist.broadcast(tensor, group_src=root),
            lambda root=root: dist.reduce(tensor, group_dst=root),
            lambda root=root: dist.gather(tensor, group_dst=root),
            lambda root=root: dist.scatter(tensor, group_src=root),
        )
        for call in calls:
            with pytest.raises(
                ValueError, match=f"the root is rank {root}, and the group has the ranks 0 to {size - 1}"
            ):
                call()
    with pytest.raises(TypeError, match=r"BAND takes whole numbers and bools, and this tensor is of torch\.float32"):
        dist.all_reduce(tensor, dist.ReduceOp.BAND)
    assert tensor.tolist() == [1.0, 1.0]


def test_mistakes_are_found_before_anything_is_sent(ranks: Ranks) -> None:
    """A root that the group does not have, and bits of floating-point numbers, change no tensor."""
    ranks.run(2, mistakes)


def dies() -> str:
    dist.all_reduce(torch.ones(3))
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(PsumError) as caught:  # noqa: PT012
        for _ in range(1000):
            dist.all_reduce(torch.ones(3))
    text = str(caught.value)
    with pytest.raises(PsumError):
        dist.all_reduce(torch.ones(3))
    return text


def dies_in_training() -> str:
    model = DistributedDataParallel(torch.nn.Linear(3, 3))
    with pytest.raises((RuntimeError, PsumError)) as caught:  # noqa: PT012
        for step in range(1000):
            model(torch.ones(1, 3)).sum().backward()
            if step == 2 and dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
    return str(caught.value)


@pytest.mark.parametrize("program", [dies, dies_in_training])
def test_a_lost_worker_is_named(ranks_that_notice: Ranks, program: Any) -> None:
    """The other ranks get an error that names the rank, in a collective and in DDP's backward pass."""
    left, gone = ranks_that_notice.run(2, program, failing=True)
    assert gone is None
    assert "rank 1" in left


def ended() -> Any:
    """A place where rank 0 says that its part of a test is over."""
    return dist.PrefixStore("test", dist.distributed_c10d._get_default_store())


def waits_in_vain(method: str, rank: int, size: int) -> str:
    # The timeout also bounds how long ranks wait for each other here, and processes do not start at the same moment.
    meet = dist.FileStore(f"{method.removeprefix('file://')}-meet", size)
    meet.set(str(rank), "")
    meet.wait([str(other) for other in range(size)], timedelta(seconds=30))
    dist.init_process_group("psum", init_method=method, rank=rank, world_size=size, timeout=timedelta(seconds=1))
    if rank:
        ended().wait(["over"], timedelta(seconds=30))
        return ""
    begun = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        dist.all_reduce(torch.ones(3))
    # Also that of a future, whose error has no type.
    with pytest.raises(RuntimeError, match="Ranks 1-2 have not contributed"):
        dist.all_reduce(torch.ones(3), async_op=True).get_future().wait()
    assert time.monotonic() - begun < 6
    ended().set("over", "")
    # Otherwise leaving waits for the other ranks' part.
    dist.group.WORLD.abort()
    return str(caught.value)


def test_a_collective_waits_no_longer_than_the_timeout(ranks: Ranks) -> None:
    """init_process_group's timeout bounds each collective, and the error names the ranks that are missing."""
    left, *_ = ranks.run(3, waits_in_vain, initialize=False, failing=True)
    assert left.startswith("all_reduce has not got its result within the timeout of 1.1 s. Ranks 1-2 have not contrib")
    assert "waits for nobody. Its tensors must not be used" in left


def until_the_aggregator_is_gone(begun: "Connection[Any, Any]") -> str:
    deadline = time.monotonic() + 20
    with pytest.raises(PsumError) as caught:  # noqa: PT012
        dist.all_reduce(torch.ones(1000))
        if dist.get_rank() == 0:
            begun.send("")
        while time.monotonic() < deadline:
            dist.all_reduce(torch.ones(1000))
            time.sleep(0.01)
    return str(caught.value)


def groups_in_other_orders(lists: list[list[int]]) -> str:
    with pytest.raises(DisagreementError) as caught:  # noqa: PT012
        for members in lists[::-1] if dist.get_rank() == 1 else lists:
            # Waits for half an hour.
            dist.new_group(members)
    return str(caught.value)


@pytest.mark.parametrize(
    ("lists", "text"),
    [
        ([[0, 1], [1, 2]], "group '1' with the ranks"),
        # Rank 1 is not in its first group, and so says nothing about that.
        ([[0, 1, 2], [0]], "rank 1 creates group '2' with the ranks [0, 1, 2] instead"),
    ],
)
def test_groups_created_in_different_orders_are_an_error_at_once(
    ranks: Ranks, lists: list[list[int]], text: str
) -> None:
    """Each rank hears of it and sees both sides, whoever has noticed it first."""
    for error in ranks.run(3, groups_in_other_orders, lists):
        assert text in error
        assert "in the same order" in error


def leaves_instead_of_a_group() -> str:
    dist.barrier()
    if dist.get_rank():
        return ""
    with pytest.raises(WorkerLostError) as caught:
        dist.new_group([0, 1])
    dist.group.WORLD.abort()  # type: ignore[union-attr, unused-ignore]
    return str(caught.value)


def test_a_group_without_a_rank_that_has_left_is_an_error(ranks: Ranks) -> None:
    """The others do not wait for the timeout."""
    text, _ = ranks.run(2, leaves_instead_of_a_group)
    assert "Rank 1" in text
    assert "has left the job, and did not create group '1' with the ranks [0, 1]" in text


def initializes_twice() -> str:
    with pytest.raises(ValueError, match="twice") as caught:
        dist.init_process_group("psum")
    dist.all_reduce(torch.ones(1))
    return str(caught.value)


def test_a_second_initialization_is_refused(ranks: Ranks) -> None:
    """The first goes on working."""
    ranks.run(2, initializes_twice)


def destroys_with_work() -> str:
    work = None
    store = ended()
    if dist.get_rank() == 0:
        work = dist.all_reduce(torch.ones(3), async_op=True)
        dist.destroy_process_group()
        with pytest.raises(PsumError) as caught:
            work.wait()
        store.set("over", "")
        return type(caught.value).__name__
    store.wait(["over"], timedelta(seconds=30))
    return ""


def test_destroying_a_group_ends_its_works(ranks: Ranks) -> None:
    """A work that nobody completes fails when the group has waited for it for some seconds."""
    left, _ = ranks.run(2, destroys_with_work, failing=True)
    assert left == ClosedError.__name__


def again() -> list[float]:
    sums = []
    for _ in range(2):
        tensor = torch.ones(1)
        dist.all_reduce(tensor)
        sums.append(tensor.item())
    return sums


def initializes_again(method: str, rank: int, size: int) -> list[float]:
    sums = []
    for number in range(3):
        dist.init_process_group("psum", init_method=f"{method}-{number}", rank=rank, world_size=size)
        sums += again()
        dist.destroy_process_group()
        with pytest.raises(ValueError, match="not been initialized"):
            dist.all_reduce(torch.ones(1))
    return sums


def test_a_process_may_initialize_again(ranks: Ranks) -> None:
    """After destroy_process_group, the processes can make a group again."""
    assert ranks.run(2, initializes_again, initialize=False) == [[2.0] * 6] * 2


def forks() -> str:
    dist.all_reduce(torch.ones(1))
    read, write = os.pipe()
    if not os.fork():
        try:
            dist.all_reduce(torch.ones(1))
        except ForkedError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    text = b""
    while part := os.read(read, 1000):
        text += part
    os.wait()
    dist.all_reduce(torch.ones(1))
    return text.decode()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_cannot_use_the_group(ranks: Ranks) -> None:
    """The child gets an error at once, and the parent's group goes on working."""
    for text in ranks.run(2, forks):
        assert "was forked" in text


def test_a_vanished_aggregator_is_named(vanishing: Fleet) -> None:
    """If it does not come back, every rank gets an error with its address."""
    address = vanishing.addresses[0]
    ours, theirs = pipe()

    def stop() -> None:
        # Otherwise no rank has begun.
        with contextlib.suppress(EOFError):
            assert ours.poll(PATIENCE_SECONDS)
            ours.recv()
            vanishing.thread.run(vanishing.servers[0].stop(0), 20)

    stopper = Thread(target=stop)
    stopper.start()
    try:
        environ = {"PSUM_RECONNECT_TIMEOUT": "1"}
        texts = Ranks([address]).run(2, until_the_aggregator_is_gone, theirs, environ=environ)
    finally:
        theirs.close()
        stopper.join()
    assert all(address in text for text in texts), texts
