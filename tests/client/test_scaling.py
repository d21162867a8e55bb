"""Sums of gradients to which fewer ranks contributed are scaled, part by part."""

from typing import Any

import numpy as np
import pytest

from psum.client import Contribution, ElementType, scale


def scale_parts(sums: Any, kind: ElementType, *parts: tuple[int, int, int], nominal: int = 4) -> None:
    """Scales a sum with parts to which fewer ranks contributed."""
    scale(sums, kind, [Contribution(*part) for part in parts], nominal)


def bfloat16(numbers: Any) -> np.ndarray[Any, Any]:
    """Numbers that bfloat16 has, as it stores them."""
    return (np.asarray(numbers, np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("kind", [ElementType.FLOAT32, ElementType.FLOAT64, ElementType.FLOAT16])
def test_each_part_has_its_own_factor(kind: ElementType) -> None:
    """Parts with 3 and 2 of 4 ranks are multiplied by 4/3 and 2, and the rest stays."""
    sums = np.array([3, 6, 4, 4, 8], kind.numpy)
    scale_parts(sums, kind, (0, 2, 3), (2, 3, 2))
    assert sums.tolist() == [4, 8, 8, 4, 8]


def test_a_factor_is_rounded_once() -> None:
    """The factor is that of float64, rounded to the type of the elements; 16 bits are rounded after the product."""
    numbers = np.linspace(-3.0, 3.0, 200_001)
    for kind in (ElementType.FLOAT32, ElementType.FLOAT64):
        sums = numbers.astype(kind.numpy)
        expected = sums * kind.numpy.type(8 / 7)
        scale_parts(sums, kind, (0, len(sums), 7), nominal=8)
        assert sums.tobytes() == expected.tobytes()
    half = numbers.astype(np.float16)
    expected = (half.astype(np.float32) * np.float32(8 / 7)).astype(np.float16)
    scale_parts(half, ElementType.FLOAT16, (0, len(half), 7), nominal=8)
    assert half.tobytes() == expected.tobytes()


def test_every_number_of_half_precision_is_multiplied_as_numpy_does_it() -> None:
    """Also subnormal numbers, infinities, and products that have no finite number. A NaN stays one."""
    given = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    for nominal, count in ((8, 7), (3, 5)):
        with np.errstate(all="ignore"):
            expected = (given.astype(np.float32) * np.float32(nominal / count)).astype(np.float16)
        sums = given.copy()
        scale_parts(sums, ElementType.FLOAT16, (0, len(sums), count), nominal=nominal)
        np.testing.assert_array_equal(sums, expected)
        assert np.signbit(sums[~np.isnan(sums)]).tolist() == np.signbit(expected[~np.isnan(expected)]).tolist()


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    """Products in bfloat16 are rounded to the nearest, ties to even; infinities and NaN stay what they are."""
    given = bfloat16([1.0, 3.0, -2.5, np.inf, -np.inf, np.nan, 3.3e38, 0.0])
    scale_parts(given, ElementType.BFLOAT16, (0, 8, 3))
    scaled = (given.astype(np.uint32) << 16).view(np.float32)
    # 4/3 lies between 1.328125 and 1.3359375, and is nearer to the second; -10/3 is nearer to -3.328125.
    assert scaled[:5].tolist() == [1.3359375, 4.0, -3.328125, np.inf, -np.inf]
    assert np.isnan(scaled[5])
    assert scaled[6:].tolist() == [np.inf, 0.0]
    tie = bfloat16([1.0078125])
    # 1.0078125 · 1.5 = 1.51171875, in the middle of 1.5078125 (odd) and 1.515625 (even).
    scale_parts(tie, ElementType.BFLOAT16, (0, 1, 2), nominal=3)
    assert tie.tolist() == bfloat16([1.515625]).tolist()


@pytest.mark.parametrize("kind", [ElementType.UINT8, ElementType.INT8, ElementType.INT32, ElementType.INT64])
def test_integers_stay(kind: ElementType) -> None:
    """Integers count things, and are not scaled."""
    sums = np.array([3, 6], kind.numpy)
    scale_parts(sums, kind, (0, 2, 1))
    assert sums.tolist() == [3, 6]


def test_bytes_are_scaled_in_place() -> None:
    """Flat bytes are taken too, as front ends have them."""
    sums = np.array([3.0, 1.0], np.float32)
    scale_parts(sums.view(np.uint8).data, ElementType.FLOAT32, (0, 1, 3))
    assert sums.tolist() == [4.0, 1.0]


def test_nothing_is_done_if_all_contributed() -> None:
    """Without parts, memory is not even read: it may be None."""
    scale_parts(None, ElementType.FLOAT32)
