"""Element types are recognised by their names, NumPy dtypes and other libraries' objects."""

import numpy as np
import pytest

from psum.wire import ElementType


@pytest.mark.parametrize("name", ["float16", "float32", "float64", "uint8", "int8", "int32", "int64"])
def test_numpy_types_and_their_names_are_known(name: str) -> None:
    """A dtype, its name and its scalar type all mean the same element type, of NumPy's size."""
    element_type = ElementType.of(name)
    assert element_type is ElementType.of(np.dtype(name)) is ElementType.of(getattr(np, name))
    assert element_type.itemsize == np.dtype(name).itemsize
    assert element_type.label == name


def test_bfloat16_is_known_by_name_and_kept_in_uint16() -> None:
    """NumPy has no bfloat16. Its name and any dtype object of that name are accepted."""

    class OtherLibrarysType:
        name = "bfloat16"

    assert ElementType.of("bfloat16") is ElementType.of(OtherLibrarysType()) is ElementType.BFLOAT16
    assert ElementType.BFLOAT16.numpy == np.uint16


@pytest.mark.parametrize(
    "dtype", ["complex64", np.dtype("uint16"), np.dtype(bool), "nonsense", object(), np.dtype("M8[s]")]
)
def test_other_types_are_refused_with_the_list_of_those_that_work(dtype: object) -> None:
    """The TypeError lists the types that can be summed."""
    with pytest.raises(TypeError, match=r"it sums float32, .*bfloat16"):
        ElementType.of(dtype)
