"""Where the parts of a program's state come from, and where they go in a process that joins."""

from collections.abc import MutableMapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from psum.wire.errors import InvalidError


@runtime_checkable
class StateSource(Protocol):
    """A part of a program's state, such as a model or an optimizer."""

    def save(self) -> object:
        """The part as it is now, in a form that can be pickled. NumPy's arrays in it travel without a copy.

        It is called at a step boundary in the process that gives its state. Nothing changes until the boundary is over.
        """

    def load(self, saved: Any) -> None:
        """Takes what `save` has given in another process. Arrays in it belong to the caller, and may be kept."""


class ArraySource:
    """One array, which is filled in place.

    Args:
        name: What it is called in errors.
        array: The array.
    """

    def __init__(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self._name = name
        self._array = array

    def save(self) -> object:
        """See StateSource."""
        return self._array

    def load(self, saved: Any) -> None:
        """See StateSource.

        Raises:
            InvalidError: The other process has an array of another shape or type.
        """
        array = self._array
        if not isinstance(saved, np.ndarray) or (saved.shape, saved.dtype) != (array.shape, array.dtype):
            there = f"{saved.dtype} {saved.shape}" if isinstance(saved, np.ndarray) else type(saved).__name__
            raise InvalidError(
                f"{self._name} is {array.dtype} {array.shape} in this process, and {there} in the job that it joins; a"
                " process that joins must have the same model and settings as the others"
            )
        array[...] = saved


class MappingSource:
    """A dictionary of arrays, which are filled in place, and of other values, which are replaced.

    Args:
        name: What it is called in errors.
        mapping: The dictionary.
    """

    def __init__(self, name: str, mapping: MutableMapping[Any, Any]) -> None:
        self._name = name
        self._mapping = mapping

    def save(self) -> object:
        """See StateSource."""
        return dict(self._mapping)

    def load(self, saved: Any) -> None:
        """See StateSource. Entries that the other process does not have are removed.

        Raises:
            InvalidError: The other process has another value, or an array of another shape or type.
        """
        if not isinstance(saved, dict):
            raise InvalidError(
                f"{self._name} is a dictionary in this process, and {type(saved).__name__} in the job that it joins"
            )
        mapping = self._mapping
        for key in [key for key in mapping if key not in saved]:
            del mapping[key]
        for key, value in saved.items():
            if isinstance(array := mapping.get(key), np.ndarray):
                ArraySource(f"{self._name}[{key!r}]", array).load(value)
            else:
                mapping[key] = value


def source_of(name: str, given: object) -> StateSource:
    """The source for what a program gives.

    Args:
        name: The entry's name.
        given: A StateSource, an array of NumPy that can be written to, or a dictionary.

    Raises:
        TypeError: It is none of these.
    """
    if not isinstance(name, str) or not name or name.startswith("state."):
        raise TypeError(f"an entry of the elastic state cannot be called {name!r}; expected a text, not like 'state.a'")
    title = f"entry {name!r} of the elastic state"
    if isinstance(given, np.ndarray):
        if not given.flags.writeable:
            raise TypeError(f"{title} is a read-only array, which cannot be filled in a process that joins")
        return ArraySource(title, given)
    if isinstance(given, MutableMapping):
        return MappingSource(title, given)
    if isinstance(given, np.random.Generator):
        return _GeneratorSource(given)
    if isinstance(given, StateSource):
        return given
    raise TypeError(
        f"{title} is a {type(given).__name__}; expected an array of NumPy, a dictionary, numpy.random.Generator, or an"
        " object with the methods save() and load(saved). Other values are given by keyword, and become attributes"
    )


class _GeneratorSource:
    """A generator of random numbers."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def save(self) -> object:
        return self._generator.bit_generator.state

    def load(self, saved: Any) -> None:
        self._generator.bit_generator.state = saved
