"""What is kept for a client is made once, and ends with it."""

import gc
import weakref

import psum.client as psum
from psum.client.client import Client
from psum.client.per_client import PerClient


class Kept:
    """Something that belongs to a client."""


def alone() -> Client:
    """A client without aggregators."""
    return psum.connect(psum.Settings())


def test_each_client_has_one_object() -> None:
    """The same whenever it is asked for, and none of another client."""
    kept = PerClient(lambda client: Kept())
    with alone() as one, alone() as other:
        assert kept.of(one) is kept.of(one)
        assert kept.of(one) is not kept.of(other)


def test_it_ends_with_its_client() -> None:
    """Neither keeps the other alive."""
    kept = PerClient(lambda client: Kept())
    client = alone()
    found = weakref.ref(kept.of(client))
    client.close()
    del client
    gc.collect()
    assert found() is None


def test_a_signal_that_arrives_while_it_is_made_gets_the_same_object() -> None:
    """The signal's handler needs it too, in the thread that makes it."""
    seen: list[Kept] = []

    def make(client: Client) -> Kept:
        if not seen:
            seen.append(Kept())
            seen[0] = kept.of(client)
        return Kept()

    kept = PerClient(make)
    with alone() as client:
        assert kept.of(client) is seen[0]
