"""The memory of stages: shared with aggregators, and pinned by a stand-in for the CUDA runtime."""

import ctypes
import gc
import pathlib
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pytest

from psum.client import Block
from psum.cuda import runtime as cuda_runtime
from psum.mxnet import BytePS
from psum.mxnet.compat import mx
from psum.mxnet.staging import cuda
from psum.mxnet.staging.host_memory import HostMemory, worker
from psum.planes import GrowingSegment
from tests.polling import PATIENCE_SECONDS, wait_until


def no_memory(size: int) -> None:
    """Stands in for `allocate` if no memory is shared."""


def done_by_the_worker(work: Callable[[], Any]) -> None:
    """Runs work in the worker, and waits for it."""
    over = threading.Event()
    worker.do(work)
    worker.do(over.set)
    assert over.wait(PATIENCE_SECONDS)


def content(memory: HostMemory, size: int) -> memoryview:
    return memoryview((ctypes.c_char * size).from_address(memory.address)).cast("B")


@pytest.fixture
def segment(tmp_path: pathlib.Path) -> Iterator[GrowingSegment]:
    growing = GrowingSegment("/dev/shm", lambda error: None)
    yield growing
    growing.close()


@pytest.mark.parametrize("size", [1, 4096, 10_000])
def test_is_where_aggregators_read(segment: GrowingSegment, size: int) -> None:
    """Data written after `prepare` is in the segment at the memory's place, and nowhere else."""
    blocks: list[Block] = []

    def allocate(size: int) -> Block | None:
        assert segment.allocate(5000)
        block = segment.allocate(size)
        assert block is not None
        blocks.append(block)
        return block

    memories = [HostMemory(size) for _ in range(3)]
    addresses = [memory.address for memory in memories]
    for memory in memories:
        memory.prepare(allocate, None)
    for number, memory in enumerate(memories):
        content(memory, size)[:] = bytes([number + 1]) * size
    assert [memory.address for memory in memories] == addresses
    assert [memory.offset for memory in memories] == [block.offset for block in blocks]
    assert [set(block.view) for block in blocks] == [{1}, {2}, {3}]
    del memory, memories
    assert [set(block.view) for block in blocks] == [{1}, {2}, {3}]


def test_is_of_use_where_nothing_is_shared() -> None:
    """The memory works if nothing is shared, or if shared memory cannot be mapped again, such as private memory."""
    memory = HostMemory(5000)
    memory.prepare(no_memory, None)
    own = bytearray(1 << 20)
    memory.prepare(lambda size: Block(8192, memoryview(own)[:size]), None)
    assert memory.offset is None
    content(memory, 5000)[:] = b"x" * 5000
    assert set(own) == {0}
    assert set(content(memory, 5000)) == {ord("x")}


# Four devices; a thread's current one is device 0 until it is set. Whatever needs a context makes one on the current
# device, and so does setting the device, as from CUDA 12 on.
RUNTIME: Final = """
#include <stddef.h>
static int contexts[DEVICES + 1];
static __thread int current;
static struct { char *address; size_t size; int device; } pinned[100];
int cudaGetDeviceCount(int *count) { *count = DEVICES; return 0; }
int cudaSetDevice(int device) { if (device >= DEVICES) return 101; contexts[current = device] = 1; return 0; }
int cudaHostRegister(char *address, size_t size, unsigned flags) {
    int free = -1;
    contexts[current] = 1;
    if (size == 13 || flags != 1) return 2;
    for (int i = 0; i < 100; i++) {
        if (!pinned[i].size) free = i;
        else if (address < pinned[i].address + pinned[i].size && pinned[i].address < address + size) return 712;
    }
    pinned[free].address = address, pinned[free].size = size, pinned[free].device = current;
    return 0;
}
int cudaHostUnregister(char *address) {
    contexts[current] = 1;
    for (int i = 0; i < 100; i++)
        if (pinned[i].size && pinned[i].address == address && pinned[i].device == current) return pinned[i].size = 0;
    return 713;
}
const char *cudaGetErrorString(int code) { return code == 2 ? "out of memory" : code == 101 ? "no device" : "?"; }
int has_context(int device) { return contexts[device]; }
size_t bytes_pinned(void) {
    size_t sum = 0;
    for (int i = 0; i < 100; i++) sum += pinned[i].size;
    return sum;
}
"""


@pytest.fixture
def make_runtime(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], ctypes.CDLL]]:
    """Compiles a stand-in for CUDA's runtime with so many devices, and loads it into this process."""

    def make(devices: int) -> ctypes.CDLL:
        source, library = tmp_path / "runtime.c", tmp_path / "libcudart.so.12"
        source.write_text(RUNTIME)
        subprocess.run(["cc", "-shared", "-fPIC", f"-DDEVICES={devices}", "-o", library, source], check=True)
        # Not another one that the process may have.
        monkeypatch.setattr(cuda_runtime, "_LIBRARY", re.compile(re.escape(str(library))))
        return ctypes.CDLL(str(library))

    cuda_runtime.runtime.cache_clear()
    yield make
    # What the test leaves is let go with the runtime in which it is pinned.
    gc.collect()
    done_by_the_worker(lambda: None)
    cuda_runtime.runtime.cache_clear()


def with_contexts(runtime: ctypes.CDLL) -> list[int]:
    return [device for device in range(4) if runtime.has_context(device)]


@pytest.mark.parametrize("device", [0, 3])
def test_is_pinned_through_the_device_of_the_arrays(make_runtime: Callable[[int], ctypes.CDLL], device: int) -> None:
    """Memory is pinned through the device of the arrays only: a context on another GPU would take memory there."""
    runtime = make_runtime(4)
    memory = HostMemory(5000)
    done_by_the_worker(lambda: memory.prepare(no_memory, device))
    assert runtime.bytes_pinned() == 5000
    assert with_contexts(runtime) == [device]


def test_is_not_pinned_for_arrays_of_the_host(make_runtime: Callable[[int], ctypes.CDLL], client: Any) -> None:
    """Arrays of the host may go through stages too, if oneDNN's layouts cannot be changed. That makes no context."""
    runtime = make_runtime(4)
    client.peers = lambda ticket: ticket.value * 10
    array = mx.nd.ones((5,))
    BytePS(client, in_place=lambda context: False).pushpull("k", array)
    assert set(array.asnumpy()) == {10}
    assert (runtime.bytes_pinned(), with_contexts(runtime)) == (0, [])


def test_is_let_go_before_its_addresses_are_given_to_others(make_runtime: Callable[[int], ctypes.CDLL]) -> None:
    """Memory is unpinned before its addresses are reused: CUDA would mistake new memory there for the old."""
    runtime = make_runtime(4)
    for _ in range(20):
        memory = HostMemory(1 << 20)
        done_by_the_worker(lambda memory=memory: memory.prepare(no_memory, 2))  # type: ignore[misc]
        assert runtime.bytes_pinned() == 1 << 20
        del memory
        gc.collect()
        wait_until(lambda: runtime.bytes_pinned() == 0)
    assert with_contexts(runtime) == [2]


@pytest.mark.parametrize(("size", "device", "reason"), [(13, 1, "out of memory"), (5000, 4, "no device")])
def test_is_of_use_where_it_cannot_be_pinned(
    make_runtime: Callable[[int], ctypes.CDLL],
    caplog: pytest.LogCaptureFixture,
    size: int,
    device: int,
    reason: str,
) -> None:
    """The memory works if it cannot be pinned. The log has the reason, and nothing is unpinned."""
    runtime = make_runtime(4)
    memory = HostMemory(size)
    done_by_the_worker(lambda: memory.prepare(no_memory, device))
    assert f"{size} bytes of host memory cannot be pinned, which makes copies slower: {reason}" in caplog.text
    content(memory, size)[:] = b"x" * size
    assert runtime.bytes_pinned() == 0


def test_without_a_device_nothing_is_pinned(
    make_runtime: Callable[[int], ctypes.CDLL], caplog: pytest.LogCaptureFixture
) -> None:
    """Without a device nothing is pinned or logged."""
    runtime = make_runtime(0)
    assert not cuda.pin(4096, 4096, 0)
    assert runtime.bytes_pinned() == 0
    assert not caplog.records


def test_without_cuda_nothing_is_pinned(run_python: Callable[..., Any]) -> None:
    """Without CUDA nothing is pinned, whatever libraries MXNet has loaded."""
    done = run_python("from psum.mxnet.staging import cuda; print(cuda.pin(4096, 4096, 0))")
    assert done.check().strip() == "False"


def test_the_worker_goes_on_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    """After a failure the worker goes on, in order, in a thread of its own."""
    seen: list[object] = []

    def fail() -> None:
        raise ValueError("a bug")

    done_by_the_worker(lambda: seen.append(threading.current_thread().name))
    worker.do(fail)
    done_by_the_worker(lambda: seen.append(np.int8(1)))
    assert seen == ["psum-stages", 1]
    assert "a bug" in caplog.text


def test_a_forked_child_has_a_worker_of_its_own(run_python: Callable[..., Any]) -> None:
    """A forked child starts a thread of its own."""
    program = """
import os, threading
from psum.mxnet.staging.host_memory import worker
def use(name):
    over = threading.Event()
    worker.do(over.set)
    print(name, over.wait(20), flush=True)
use("parent")
if (child := os.fork()) == 0:
    use("child")
    os._exit(0)
os.waitpid(child, 0)
use("parent")
"""
    assert run_python(program).check().splitlines() == ["parent True", "child True", "parent True"]
