"""A state as a stream of bytes, and back."""

import itertools

import numpy as np
import pytest

from psum.client import InvalidError
from psum.client.elastic.packing import cut, pack, unpack


class Awkward:
    """Cannot be pickled."""

    def __reduce__(self) -> str:
        raise RuntimeError("no")


def joined(pieces: "list[memoryview] | tuple[memoryview, ...]") -> memoryview:
    return memoryview(bytearray(b"".join(pieces)))


def test_a_state_arrives_as_it_was() -> None:
    """Arrays of all kinds, empty ones, in any memory order, nested in other objects."""
    state = {
        "model": {"w": np.arange(12.0).reshape(3, 4), "b": np.zeros(0, np.float16), "t": np.arange(6).reshape(2, 3).T},
        "step": 3,
        "text": ["a", None, np.float32(2.5), np.array(7)],
    }
    packed = pack(state)
    assert packed.nbytes == sum(piece.nbytes for piece in packed.pieces)
    arrived = unpack(joined(list(packed.pieces)))
    assert arrived.keys() == state.keys()
    for name, array in state["model"].items():  # type: ignore[attr-defined]
        assert np.array_equal(arrived["model"][name], array)
        assert arrived["model"][name].dtype == array.dtype
    assert (arrived["step"], arrived["text"]) == (state["step"], state["text"])


def test_arrays_are_not_copied_on_either_side() -> None:
    """The stream has the arrays' own memory, and the arrays that arrive lie in the stream, can be written to, and are
    aligned."""
    array = np.arange(1000.0)
    packed = pack({"a": array, "b": np.arange(3, dtype=np.uint8), "c": array[:10]})
    assert any(np.shares_memory(np.frombuffer(piece, np.uint8), array) for piece in packed.pieces if piece.nbytes)
    stream = np.frombuffer(joined(list(packed.pieces)), np.uint8)
    arrived = unpack(stream.data)
    base = stream.__array_interface__["data"][0]
    for each in arrived.values():
        assert np.shares_memory(each, stream)
        assert (each.__array_interface__["data"][0] - base) % 64 == 0
        each += 1


def test_an_entry_that_cannot_be_pickled_is_named() -> None:
    """With the reason."""
    with pytest.raises(InvalidError, match=r"entry 'bad' of the elastic state cannot be pickled.*RuntimeError: no"):
        pack({"good": 1, "bad": Awkward()})


def test_an_entry_that_cannot_be_unpickled_is_named() -> None:
    """As where the program that joins is another one: it has no such class."""
    data = joined(list(pack({"good": 1, "bad": Passing()}).pieces))
    Passing.gone = True
    with pytest.raises(InvalidError, match=r"entry 'bad' .* cannot be unpickled in this process: RuntimeError: gone"):
        unpack(data)


class Passing:
    """Can be pickled, and not always unpickled."""

    gone = False

    def __reduce__(self) -> "tuple[object, tuple[()]]":
        return _make, ()


def _make() -> Passing:
    if Passing.gone:
        raise RuntimeError("gone")
    return Passing()


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 10_000])
def test_chunks_are_of_one_size_and_have_all_bytes_in_order(size: int) -> None:
    """The last one is filled up. What lies within one piece is not copied."""
    pieces = [np.random.default_rng(seed).bytes(length) for seed, length in enumerate((5, 0, 3000, 1, 64, 2000))]
    whole = b"".join(pieces)
    chunks = list(cut([memoryview(piece) for piece in pieces], itertools.chain([10], itertools.repeat(size))))
    assert {chunk.nbytes for chunk in chunks[1:]} <= {size}
    assert b"".join(chunks).rstrip(b"\0") == whole.rstrip(b"\0")
    assert sum(chunk.nbytes for chunk in chunks) - len(whole) < max(size, 10)
