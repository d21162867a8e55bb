"""The pool of arrays that stand in for those of devices."""

import ctypes
import pathlib
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from psum.client import Block
from psum.mxnet import StageStatistics, _cuda
from psum.mxnet._arguments import Arrays
from psum.mxnet._compat import mx
from psum.mxnet._stages import StagePool


def arrays(shape: tuple[int, ...], dtype: str = "float32") -> Arrays:
    return Arrays.of(mx.nd.zeros(shape, dtype=dtype), "value")


def test_pinned_and_alike() -> None:
    """What is lent is pinned memory of the wanted shape and type."""
    stage, place = StagePool().take(arrays((2, 3), "float16"))
    assert place is None
    assert stage.context.device_type == "cpu_pinned"
    assert stage.shape == (2, 3)
    assert stage.dtype is np.float16


def test_reused_where_alike() -> None:
    """What is given back is lent again for the same shape and type, and for no other."""
    pool = StagePool()
    like = arrays((2, 3))
    first, second = pool.take(like), pool.take(like)
    assert pool.statistics() == StageStatistics(allocated=2, in_use=2)
    pool.give_back(second, like)
    assert pool.take(arrays((3, 2))) is not second
    assert pool.take(arrays((2, 3), "int32")) is not second
    assert pool.take(arrays((2, 3))) is second
    assert first is not second
    assert pool.statistics() == StageStatistics(allocated=4, in_use=4)


def test_dropped_is_not_lent_again() -> None:
    """What is dropped does not count any more, and another array is lent next."""
    pool = StagePool()
    like = arrays((2,))
    first = pool.take(like)
    pool.drop()
    assert pool.statistics() == StageStatistics(allocated=0, in_use=0)
    assert pool.take(like) is not first


@pytest.mark.parametrize("shape", [(2, 3), (), (5,)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
def test_lies_in_memory_that_aggregators_read(shape: tuple[int, ...], dtype: str) -> None:
    """Where there is some: what the engine writes to the array is there, and the place is known."""
    memory = bytearray(4096)
    pool = StagePool(lambda size: Block(8192, memoryview(memory)[:size]))
    with mx.util.np_shape(True):
        like = arrays(shape, dtype)
        stage, place = pool.take(like)
        assert (place, stage.shape, np.dtype(stage.dtype)) == (8192, shape, np.dtype(dtype))
        mx.nd.full(shape, 7, dtype=dtype).copyto(stage)
        stage.wait_to_read()
    assert set(np.frombuffer(memory, dtype, int(np.prod(shape)))) == {7}


RUNTIME = """
#include <stddef.h>
static size_t registered;
int cudaGetDeviceCount(int *count) { *count = DEVICES; return 0; }
int cudaHostRegister(void *address, size_t size, unsigned flags) {
    if (size == 13) return 2;
    registered += flags == 1 ? size : 0;
    return 0;
}
const char *cudaGetErrorString(int code) { return code == 2 ? "out of memory" : "?"; }
size_t sum_of_registered(void) { return registered; }
"""


@pytest.fixture
def make_runtime(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], ctypes.CDLL]]:
    """Makes a library that has what is used of CUDA's runtime, with so many devices, and loads it into this process."""

    def make(devices: int) -> ctypes.CDLL:
        source, library = tmp_path / "runtime.c", tmp_path / "libcudart.so.12"
        source.write_text(RUNTIME)
        subprocess.run(["cc", "-shared", "-fPIC", f"-DDEVICES={devices}", "-o", library, source], check=True)
        # Not another one that the process may have.
        monkeypatch.setattr(_cuda, "_LIBRARY", re.compile(re.escape(str(library))))
        return ctypes.CDLL(str(library))

    _cuda._runtime.cache_clear()
    yield make
    _cuda._runtime.cache_clear()


def test_shared_memory_is_pinned(make_runtime: Callable[[int], ctypes.CDLL], caplog: pytest.LogCaptureFixture) -> None:
    """Where the process has CUDA's runtime and a device; where that refuses, the log says why."""
    runtime = make_runtime(1)
    memory = bytearray(4096)
    StagePool(lambda size: Block(0, memoryview(memory)[:size])).take(arrays((5, 6)))
    assert runtime.sum_of_registered() == 120
    assert not _cuda.pin(1 << 20, 13)
    assert "13 bytes of shared memory cannot be pinned, which makes copies slower: out of memory" in caplog.text


def test_without_a_device_nothing_is_pinned(
    make_runtime: Callable[[int], ctypes.CDLL], caplog: pytest.LogCaptureFixture
) -> None:
    """And nothing is said of it."""
    runtime = make_runtime(0)
    assert not _cuda.pin(4096, 4096)
    assert runtime.sum_of_registered() == 0
    assert not caplog.records


def test_without_cuda_nothing_is_pinned(run_python: Callable[..., Any]) -> None:
    """Whatever libraries MXNet has brought into the process."""
    done = run_python("from psum.mxnet import _cuda; print(_cuda.pin(4096, 4096))")
    assert done.check().strip() == "False"
