"""Everything that depends on an element type follows from the table in psum.wire.elements."""

import pathlib
from typing import Any, Final

import numpy as np
import pytest

from psum.aggregator.sums.sums import add_up
from psum.cli.bench.workloads import Values
from psum.client.core.buffers import Buffer
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ElementType

ROOT: Final = pathlib.Path(__file__).parent.parent

every_type: Final = pytest.mark.parametrize("element_type", list(ElementType), ids=lambda t: t.label)


def contributions(element_type: ElementType, workers: int) -> tuple[list[np.ndarray[Any, Any]], Values]:
    """Each rank's tensor of 1000 elements, and the values that they come from."""
    values = Values(element_type, workers)
    arrays = [np.zeros(1000, element_type.numpy) for _ in range(workers)]
    for rank, array in enumerate(arrays):
        values.fill(array, rank=rank, tensor=0, turn=0)
    return arrays, values


def test_the_table_has_the_types_of_the_protocol() -> None:
    """The names and values are those of the protocol's enum."""
    declared = {f"ELEMENT_TYPE_{t.name}": t.wire for t in ElementType}
    assert {**declared, "ELEMENT_TYPE_UNSPECIFIED": 0} == dict(pb.ElementType.items())


@every_type
def test_numpy_has_the_storage(element_type: ElementType) -> None:
    """The label means the type, and so does the NumPy dtype if NumPy has the type."""
    assert ElementType.of(element_type.label) is element_type
    assert element_type.itemsize == element_type.numpy.itemsize
    assert element_type.numpy == element_type.numpy.newbyteorder("<")
    if element_type.in_numpy:
        assert ElementType.of(element_type.numpy) is element_type


@every_type
def test_digits_are_how_far_whole_numbers_are_exact(element_type: ElementType) -> None:
    """The largest number of that many digits is exact. Twice that number plus one is not."""
    most = (1 << element_type.digits) - 1
    if not element_type.in_numpy:
        assert element_type.digits == 8
    elif element_type.is_float:
        assert int(np.array(most).astype(element_type.numpy)) == most
        assert int(np.array(2 * most + 1).astype(element_type.numpy)) != 2 * most + 1
    else:
        assert most == np.iinfo(element_type.numpy).max


@every_type
def test_a_client_takes_arrays_without_a_copy(element_type: ElementType) -> None:
    """The storage has a letter of the buffer protocol, so an array stays the array it is."""
    array = np.zeros(3, element_type.numpy)
    buffer = Buffer.of(array, "value", element_type.label)
    assert buffer.memory is array
    assert buffer.element_type is element_type


@every_type
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_an_aggregator_sums_it(element_type: ElementType, workers: int) -> None:
    """Two contributions and more are added up in different ways. Both give the exact sum."""
    arrays, values = contributions(element_type, workers)
    total = np.zeros_like(arrays[0])
    add_up(element_type, [array.view(np.uint8).data for array in arrays], total.view(np.uint8).data)
    assert values.is_sum(total, tensor=0, turn=0)


@every_type
def test_mxnet_arrays_have_it(element_type: ElementType) -> None:
    """An NDArray in the memory of a NumPy array has the element type, the size and the bytes."""
    pytest.importorskip("mxnet")
    from psum.mxnet.arrays.dlpack import array_at
    from psum.mxnet.arrays.inspection import element_type_of
    from psum.mxnet.arrays.memory import flat_bytes

    (array,), _ = contributions(element_type, 1)
    found = array_at(array.ctypes.data, array.shape, element_type)
    assert element_type_of(found) is element_type
    assert bytes(flat_bytes(found, array.nbytes)) == array.tobytes()


@every_type
def test_users_are_told_of_it(element_type: ElementType) -> None:
    """The README lists it."""
    assert element_type.label in (ROOT / "README.md").read_text()
