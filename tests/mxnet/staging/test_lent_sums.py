"""When the memory of lent sums is pinned."""

import gc
import threading
from typing import Any

from psum.mxnet.staging.host_memory import worker
from psum.mxnet.staging.lent_sums import LentSums
from tests.polling import PATIENCE_SECONDS


class Memory:
    """Stands in for mapped sums."""

    def __init__(self, address: int, size: int = 4096) -> None:
        self.address, self.size = address, size


class Loan:
    """Stands in for a loan."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory


class Scene:
    """Lent sums, with a log of what is pinned."""

    def __init__(self, *, pins: bool = True) -> None:
        self.log = log = list[str]()

        # Neither refers to the scene, which would keep itself alive.
        def pin(address: int, size: int, device: int) -> bool:
            log.append(f"pin {address} for {device}")
            return pins

        def unpin(address: int, device: int) -> None:
            log.append(f"unpin {address} for {device}")

        self.lent = LentSums(pin, unpin)

    def pinned(self, memory: Memory, device: int = 0) -> bool:
        loan: Any = Loan(memory)
        return self.lent.pinned("w", loan, device)


def test_memory_is_pinned_once() -> None:
    """The memory of a key is pinned when it is first lent, and let go when the key has other memory."""
    scene = Scene()
    first, second = Memory(1000), Memory(2000)
    assert scene.pinned(first, 3)
    assert scene.pinned(first, 3)
    assert scene.log == ["pin 1000 for 3"]
    assert scene.pinned(second, 3)
    assert scene.log[1:] == ["unpin 1000 for 3", "pin 2000 for 3"]


def test_memory_that_cannot_be_pinned() -> None:
    """If memory cannot be pinned, this is tried once, and nothing is let go."""
    scene = Scene(pins=False)
    memory = Memory(1000)
    assert not scene.pinned(memory)
    assert not scene.pinned(memory)
    assert not scene.pinned(Memory(2000))
    assert scene.log == ["pin 1000 for 0", "pin 2000 for 0"]


def test_memory_is_let_go_with_its_client() -> None:
    """When the client is gone, its memory is unpinned in the thread that uses CUDA."""
    scene = Scene()
    scene.pinned(Memory(1000), 2)
    log = scene.log
    del scene
    gc.collect()
    done = threading.Event()
    worker.do(done.set)
    assert done.wait(PATIENCE_SECONDS)
    assert log[1:] == ["unpin 1000 for 2"]
