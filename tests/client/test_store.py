"""A key that was used before is checked faster, and with the same outcome."""

import weakref
from typing import Any

import numpy as np
import pytest

from psum.client import Client, Settings, connect


@pytest.fixture
def client() -> Any:
    """The client of a job of one worker without aggregators."""
    with connect(Settings(rank=0, num_workers=1)) as client:
        yield client


def _read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


#: Arrays that differ in some way from one of 4 × 6 float32.
OTHERS: dict[str, Any] = {
    "the same": lambda: np.ones((4, 6), np.float32),
    "another shape": lambda: np.ones((6, 4), np.float32),
    "another size": lambda: np.ones((4, 5), np.float32),
    "another type of the same size": lambda: np.ones((4, 6), np.int32),
    "big endian": lambda: np.ones((4, 6), ">f4"),
    "not contiguous": lambda: np.ones((6, 4), np.float32).T,
    "every other": lambda: np.ones((4, 12), np.float32)[:, ::2],
    "read-only": lambda: _read_only(np.ones((4, 6), np.float32)),
    "bytes": lambda: bytes(96),
    "a view of memory": lambda: np.ones((4, 6), np.float32).data,
    "a list": lambda: [1.0] * 24,
    "a subclass": lambda: np.ones((4, 6), np.float32).view(np.matrix),
    "nothing": lambda: np.ones((0, 6), np.float32),
}


@pytest.mark.parametrize("given", OTHERS)
@pytest.mark.parametrize("received", [None, *OTHERS])
def test_what_a_key_takes_does_not_depend_on_how_often_it_was_used(
    client: Client, given: str, received: str | None
) -> None:
    """After two ordinary sums, arrays of every kind are taken or refused as after one."""
    outcomes = []
    for times in (1, 3):
        store = client.store()
        for _ in range(times):
            store.push_pull("w", np.ones((4, 6), np.float32), np.zeros((4, 6), np.float32))
        value, out = OTHERS[given](), None if received is None else OTHERS[received]()
        try:
            store.push_pull("w", value, out)
        except (TypeError, ValueError) as error:
            outcomes.append(f"{type(error).__name__}: {error}".replace(f" (store {store.number})", ""))
        else:
            outcomes.append(np.asarray(value if out is None else out).tolist())
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("key", "options"),
    [
        (True, {}),
        (1.0, {}),
        ([1], {}),
        (1, {"priority": 1 << 63}),
        (1, {"priority": 0.5}),
        (1, {"priority": np.int64(3)}),
        (1, {"element_type": "int32"}),
        (1, {"element_type": "float16"}),
        (np.int64(1), {}),
        ("1", {}),
    ],
)
def test_wrong_arguments_are_refused_for_a_known_key_too(client: Client, key: Any, options: dict[str, Any]) -> None:
    """The same error comes as for a key that was used once."""
    outcomes = []
    for times in (1, 3):
        store = client.store()
        for _ in range(times):
            store.push_pull(1, np.ones(3, np.float32))
        try:
            store.push_pull(key, np.ones(3, np.float32), **options)
        except (TypeError, ValueError) as error:
            outcomes.append(f"{type(error).__name__}: {error}".replace(f" (store {store.number})", ""))
        else:
            outcomes.append("taken")
    assert outcomes[0] == outcomes[1]


def test_a_known_key_keeps_no_arrays(client: Client) -> None:
    """What is remembered of a key does not keep the caller's memory."""
    store = client.store()
    for _ in range(3):
        array = np.ones(3, np.float32)
        store.push_pull("w", array)
    gone = weakref.ref(array)
    del array
    assert gone() is None
