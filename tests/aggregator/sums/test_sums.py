"""Sums are right, in rank order, and rounded once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from psum.aggregator.sums.sums import add_up
from psum.wire import ElementType

SIZES = [1, 3, 17, 32 << 10, (32 << 10) + 1, 100_003]


def total(element_type: ElementType, values: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    out = np.empty_like(values[0])
    add_up(element_type, [v.view(np.uint8).data for v in values], out.view(np.uint8).data)
    return out


def bfloat16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Single precision rounded to bfloat16, ties to even, by the definition."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def single(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (values.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("name", ["float32", "float64"])
def test_floats_are_added_in_rank_order(name: str, workers: int, size: int) -> None:
    """The bits are those of adding rank after rank, which another order would not give."""
    random = np.random.default_rng(size)
    values = [
        (random.standard_normal(size) * 10.0 ** random.integers(-6, 6, size)).astype(name) for _ in range(workers)
    ]
    expected = values[0].copy()
    for value in values[1:]:
        expected += value
    assert total(ElementType.of(name), values).tobytes() == expected.tobytes()


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("name", ["uint8", "int8", "int32", "int64"])
def test_integers_wrap_around(name: str, workers: int) -> None:
    """Integers are added modulo their size."""
    values = [
        np.frombuffer(np.random.default_rng(rank).bytes(1001 * np.dtype(name).itemsize), name)
        for rank in range(workers)
    ]
    expected = values[0].copy()
    for value in values[1:]:
        expected += value
    assert total(ElementType.of(name), values).tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_half_precision_is_the_single_precision_sum_rounded_once(workers: int, size: int) -> None:
    """float16 and bfloat16 are accumulated in float32; only the result is rounded."""
    random = np.random.default_rng(size)
    exact = [
        (random.standard_normal(size) * 10.0 ** random.integers(-3, 3, size)).astype(np.float32) for _ in range(workers)
    ]

    halves = [e.astype(np.float16) for e in exact]
    expected = halves[0].astype(np.float32)
    for half in halves[1:]:
        expected += half.astype(np.float32)
    assert total(ElementType.FLOAT16, halves).tobytes() == expected.astype(np.float16).tobytes()

    brains = [bfloat16(e) for e in exact]
    expected = single(brains[0])
    for brain in brains[1:]:
        expected = expected + single(brain)
    assert total(ElementType.BFLOAT16, brains).tobytes() == bfloat16(expected).tobytes()


def test_every_half_added_to_zero_and_to_itself() -> None:
    """All 65,536 patterns of both half precisions, infinities, subnormals and NaN included."""
    patterns = np.arange(1 << 16, dtype=np.uint16)
    zeros = np.zeros_like(patterns)
    with np.errstate(all="ignore"):
        for other in (zeros, patterns, patterns[::-1].copy()):
            wide = patterns.view(np.float16).astype(np.float32) + other.view(np.float16).astype(np.float32)
            result = total(ElementType.FLOAT16, [patterns, other]).view(np.float16)
            np.testing.assert_array_equal(result, wide.astype(np.float16))

            wide = single(patterns) + single(other)
            result = total(ElementType.BFLOAT16, [patterns, other])
            numbers = ~np.isnan(wide)
            assert np.isnan(single(result[~numbers])).all()
            np.testing.assert_array_equal(result[numbers], bfloat16(wide[numbers]))


@pytest.mark.parametrize("name", ["float32", "float64", "float16"])
def test_infinity_and_nan_come_through(name: str) -> None:
    """An overflow check after the sum sees what a worker saw."""
    one = np.array([np.inf, -np.inf, np.nan, np.inf, 1.0], name)
    two = np.array([1.0, 1.0, 1.0, -np.inf, 2.0], name)
    np.testing.assert_array_equal(total(ElementType.of(name), [one, two]), [np.inf, -np.inf, np.nan, np.nan, 3.0])


@pytest.mark.parametrize("element_type", list(ElementType))
def test_nothing_needs_alignment_and_contributions_are_not_changed(element_type: ElementType) -> None:
    """Payloads that lie anywhere in a message give the same sum, which may lie anywhere too, and are not changed."""
    random = np.random.default_rng(1)
    values = [random.integers(0, 100, 501).astype(element_type.numpy) for _ in range(3)]
    shifted = []
    for value in values:
        memory = bytearray(b"x" + value.tobytes())
        shifted.append(memoryview(memory)[1:].toreadonly())
    out = memoryview(bytearray(values[0].nbytes + 1))[1:]
    add_up(element_type, shifted, out)
    assert out.tobytes() == total(element_type, values).tobytes()
    assert [bytes(s) for s in shifted] == [v.tobytes() for v in values]
