"""The tensors of benchmarks, and the check of their sums."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from psum.cli.bench.workloads import MAX_WORKERS, NAMES, Values, sizes
from psum.wire import ElementType

Array = npt.NDArray[Any]


@pytest.mark.parametrize(
    ("workload", "tensors", "elements"),
    [
        ("big", 16, 16 << 20),
        ("wide", 16, 32 << 20),
        ("small", 256, 256 << 10),
        ("many", 10_000, 2_560_000),
        ("resnet50", 193, 25_575_912),
        ("vgg16", 32, 138_357_544),
        ("transformer", 199, 109_482_240),
        ("resnet50-ddp", 5, 25_575_912),
        ("transformer-ddp", 14, 109_482_240),
    ],
)
def test_sizes(workload: str, tensors: int, elements: int) -> None:
    """The networks have as many parameters as their models in the model zoo, the transformer as many as BERT-base."""
    assert (len(sizes(workload)), sum(sizes(workload))) == (tensors, elements)


def test_every_workload_has_sizes() -> None:
    """Every workload that the command offers has sizes."""
    assert all(sizes(name) for name in NAMES)


def _widened(array: Array, element_type: ElementType) -> Array:
    if element_type is ElementType.BFLOAT16:
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def _narrowed(array: Array, element_type: ElementType) -> Array:
    if element_type is ElementType.BFLOAT16:
        return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return array.astype(element_type.numpy)


def _contributions(values: Values, element_type: ElementType, workers: int, turn: int = 0) -> list[Array]:
    arrays = []
    for rank in range(workers):
        array = np.zeros(1000, element_type.numpy)
        values.fill(array, rank=rank, tensor=3, turn=turn)
        arrays.append(_widened(array, element_type))
    return arrays


@pytest.mark.parametrize("workers", [1, 2, 7, MAX_WORKERS])
@pytest.mark.parametrize("element_type", list(ElementType), ids=lambda t: t.label)
def test_sums_are_exact_in_every_element_type(element_type: ElementType, workers: int) -> None:
    """The exact sum can be stored in the element type without rounding, and the check accepts it."""
    values = Values(element_type, workers)
    total = sum(_contributions(values, element_type, workers))
    stored = _narrowed(np.asarray(total), element_type)
    assert np.array_equal(_widened(stored, element_type), total)
    assert values.is_sum(stored, tensor=3, turn=0)


@pytest.mark.parametrize("element_type", list(ElementType), ids=lambda t: t.label)
def test_wrong_sums_are_noticed(element_type: ElementType) -> None:
    """The check rejects a sum with a rank missing or counted twice, a sum of another tensor or turn, and one wrong
    element."""
    values = Values(element_type, 3)
    first, second, third = _contributions(values, element_type, 3)
    for wrong in (first + second, first + second + second, first + second + second + third):
        assert not values.is_sum(_narrowed(wrong, element_type), tensor=3, turn=0)
    right = _narrowed(first + second + third, element_type)
    assert not values.is_sum(right, tensor=4, turn=0)
    assert not values.is_sum(right, tensor=3, turn=1)
    right[999] += 1
    assert not values.is_sum(right, tensor=3, turn=0)
