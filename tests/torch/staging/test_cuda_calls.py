"""psum's own calls of the CUDA runtime, with a stand-in for it whose streams are threads."""

import ctypes
import pathlib
import subprocess
import time
import types
from typing import Any, Final

import pytest
import torch

from psum.torch.staging.cuda_calls import RuntimeCalls

SOURCE: Final = pathlib.Path(__file__).parents[2] / "gpu" / "cudart_streams.c"

PATIENCE_SECONDS: Final = 30.0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The stand-in."""
    built = tmp_path_factory.mktemp("cuda") / "libcudart.so.13"
    subprocess.run(["cc", "-O1", "-w", "-shared", "-fPIC", "-o", built, SOURCE, "-lpthread"], check=True)
    library = ctypes.CDLL(str(built))
    library.cudaGetErrorString.restype = ctypes.c_char_p
    return library


@pytest.fixture
def calls(library: ctypes.CDLL) -> RuntimeCalls:
    return RuntimeCalls(library)


def stream(library: ctypes.CDLL) -> Any:
    """Makes a stream, as PyTorch shows it."""
    made = ctypes.c_void_p()
    assert library.cudaStreamCreate(ctypes.byref(made)) == 0
    return types.SimpleNamespace(cuda_stream=made.value)


def test_a_copy_waits_for_an_event(library: ctypes.CDLL, calls: RuntimeCalls) -> None:
    """Copies on two streams, of which the second waits for the first: each event is reached after its copy."""
    first, second = stream(library), stream(library)
    source = torch.arange(300_000, dtype=torch.int32)
    between, target = torch.zeros_like(source), torch.zeros_like(source)
    calls.copy(first, between, source, pinned=True)
    calls.wait(second, calls.record(first))
    calls.copy(second, target, between, pinned=True)
    copied = calls.record(second)
    copied.synchronize()
    assert copied.query()
    assert torch.equal(target, source)


def test_an_event_is_asked(library: ctypes.CDLL, calls: RuntimeCalls) -> None:
    """It says that its point is not reached, and later that it is."""
    one = stream(library)
    memory = torch.zeros(100)
    answers: list[bool] = []
    # They take half a second, for which this thread is hardly held up.
    for _ in range(3000):
        calls.copy(one, memory, memory, pinned=True)
    event = calls.record(one)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not answers or not answers[-1]:
        answers.append(event.query())
        assert time.monotonic() < deadline
    assert answers[0] is False


def test_handles_are_used_again(library: ctypes.CDLL, calls: RuntimeCalls) -> None:
    """An event that is gone leaves its handle to the next one. Events that exist have handles of their own."""
    one = stream(library)
    events = [calls.record(one) for _ in range(3)]
    handles = {event.handle for event in events}
    assert len(handles) == 3
    events.clear()
    assert {event.handle for event in [calls.record(one) for _ in range(3)]} == handles


def test_what_is_not_plain_is_copied_by_pytorch(library: ctypes.CDLL, calls: RuntimeCalls) -> None:
    """A tensor that is not contiguous arrives in its own order, as does one whose memory is not pinned."""
    one = stream(library)
    source, target = torch.arange(6).view(2, 3), torch.zeros(3, 2, dtype=torch.int64)
    calls.copy(one, target, source.T, pinned=True)
    assert torch.equal(target, source.T)
    calls.copy(one, target, source.T * 2, pinned=False)
    assert torch.equal(target, source.T * 2)


def test_an_error_is_in_cudas_words(library: ctypes.CDLL, calls: RuntimeCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA refuses is an error for people."""
    monkeypatch.setattr("psum.cuda.runtime.runtime", lambda: library)
    monkeypatch.setattr(calls.quick, "cudaEventRecord", lambda *_: 2)
    with pytest.raises(RuntimeError, match="out of memory"):
        calls.record(stream(library))
