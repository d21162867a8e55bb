"""Copies past the caches, by the library that an installation compiles."""

import pathlib

import numpy as np
import pytest

from psum.runtime import streaming
from tests import build_hook


@pytest.fixture(autouse=True)
def _fresh() -> None:
    """Each test finds its own library."""
    streaming.streaming_copy.cache_clear()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The library, compiled as in an installation."""
    library = tmp_path_factory.mktemp("compiled") / "streaming.so"
    problem = build_hook.load().compile_library(pathlib.Path(streaming.__file__).with_suffix(".c"), library)
    if problem is not None:
        pytest.skip(problem)
    return library


@pytest.fixture
def copy(compiled: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> streaming.Copy:
    """The function, from the compiled library."""
    monkeypatch.setattr(streaming, "LIBRARY", compiled)
    found = streaming.streaming_copy()
    assert found is not None
    return found


@pytest.mark.parametrize("size", [0, 1, 63, 64, 8191, 8192, 8193, 100_000, 1 << 20])
@pytest.mark.parametrize(("to", "start"), [(0, 0), (1, 0), (0, 1), (16, 3), (63, 17)])
def test_a_streaming_copy_copies_all_bytes_and_no_others(copy: streaming.Copy, size: int, to: int, start: int) -> None:
    """For sizes around lines and pages, and at every kind of address."""
    rng = np.random.default_rng(size)
    source = rng.integers(0, 256, size + 64, np.uint8)
    target = np.full(size + 128, 7, np.uint8)
    copy(target.data[to : to + size], source.data[start : start + size])
    assert np.array_equal(target[to : to + size], source[start : start + size])
    assert (target[:to] == 7).all()
    assert (target[to + size :] == 7).all()


def test_a_streaming_copy_checks_the_memory_that_it_is_given(copy: streaming.Copy) -> None:
    """Sizes that differ, and memory that must not be written, are errors rather than broken memory."""
    with pytest.raises(ValueError, match="3 bytes cannot be copied to 4 bytes"):
        copy(memoryview(bytearray(4)), memoryview(b"abc"))
    with pytest.raises(ValueError, match="cannot be copied"):
        copy(memoryview(b"xyz"), memoryview(b"abc"))


def test_an_installation_without_the_library_has_no_streaming_copy(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a missing library nor one for another processor is an error."""
    monkeypatch.setattr(streaming, "LIBRARY", tmp_path / "missing.so")
    assert streaming.streaming_copy() is None
    streaming.streaming_copy.cache_clear()
    (tmp_path / "missing.so").write_bytes(b"\x7fELF of another processor")
    assert streaming.streaming_copy() is None
