"""ElasticState as a program sees it, without a network: values, sources, and a job that is not elastic."""

from typing import Any
from unittest import mock

import numpy as np
import pytest

from psum import client as psum
from psum.client import termination
from psum.client.core import roll_call
from psum.client.elastic import boundary
from psum.client.elastic.link import Link
from psum.client.elastic.packing import pack, unpack


@pytest.fixture
def client() -> psum.Client:
    """The client of a job of one worker, which is not elastic."""
    return psum.connect(psum.Settings())


def copy_to(target: psum.ElasticState, source: psum.ElasticState) -> None:
    """Gives one state to another one, as they are given between processes."""
    packed = pack(source._save())
    target._load(unpack(memoryview(bytearray(b"".join(packed.pieces)))))


class Source:
    """A source of its own."""

    def __init__(self, content: int) -> None:
        self.content = content

    def save(self) -> object:
        return {"content": self.content}

    def load(self, saved: Any) -> None:
        self.content = saved["content"]


def test_in_a_job_that_is_not_elastic_it_only_keeps_values(client: psum.Client) -> None:
    """So a program need not ask. Its members are all ranks, and boundaries cost nothing."""
    with client:
        state = psum.ElasticState(client, epoch=3)
        state.on_change(lambda members: pytest.fail("they do not change"))
        state.step()
        state.epoch += 1
        assert (state.epoch, state.members, state.joined, state.left) == (4, (0,), False, False)


def test_values_are_attributes_with_given_names(client: psum.Client) -> None:
    """A name that is written wrong is an error, rather than a value that others do not get."""
    with client:
        state = psum.ElasticState(client, batch=0)
        with pytest.raises(AttributeError, match="no value 'bathc' that can be set; give it to the constructor"):
            state.bathc = 1
        with pytest.raises(AttributeError, match="no value 'epoch'; give it to the constructor"):
            _ = state.epoch
        for taken in ("step", "members", "joined", "_private"):
            with pytest.raises(TypeError, match=f"cannot be called '{taken}'"):
                psum.ElasticState(client, None, exit_on_leave=True, **{taken: 0})


def test_a_state_fills_another_one_in_place(client: psum.Client) -> None:
    """Arrays, also those in dictionaries and those given as values, generators of random numbers, and other sources."""
    with client:
        made = []
        for begin in (1, 5):
            array, value = np.full(4, begin), np.full(3, begin)
            nested: dict[str, Any] = {"w": np.full(2, begin), "lr": begin}
            generator, source = np.random.default_rng(begin), Source(begin)
            sources: dict[str, Any] = {"array": array, "nested": nested, "chance": generator, "source": source}
            state = psum.ElasticState(client, sources, value=value, text=str(begin), shape=np.zeros(begin))
            made.append((state, array, nested, value, generator, source))
        (first, *_, their_generator, _), (second, array, nested, value, generator, source) = made
        weights = nested["w"]
        copy_to(second, first)
        assert array.tolist() == [1] * 4
        assert nested["w"] is weights
        assert (weights.tolist(), nested["lr"]) == ([1, 1], 1)
        assert second.value is value
        assert value.tolist() == [1] * 3
        assert (second.text, second.shape.size, source.content) == ("1", 1, 1)
        assert generator.integers(1 << 40) == their_generator.integers(1 << 40)


@pytest.mark.parametrize(
    ("mine", "theirs", "text"),
    [
        (
            np.zeros(3),
            np.zeros(4),
            r"entry 'a' of the elastic state is float64 \(3,\) in this process, and float64 \(4,\)",
        ),
        (np.zeros(3), np.zeros(3, np.float32), r"is float64 \(3,\) in this process, and float32 \(3,\)"),
        ({"w": np.zeros(3)}, {"w": 1.0}, r"entry 'a' of the elastic state\['w'\] is float64 \(3,\) .*, and float in"),
        ({"w": 1}, np.zeros(1), "is a dictionary in this process, and ndarray in the job"),
    ],
)
def test_a_state_that_does_not_fit_is_an_error_that_names_the_entry(
    client: psum.Client, mine: Any, theirs: Any, text: str
) -> None:
    """As where a process joins with another model or type of elements."""
    with client:
        one, other = psum.ElasticState(client, {"a": mine}), psum.ElasticState(client, {"a": theirs})
        with pytest.raises(psum.InvalidError, match=text):
            copy_to(one, other)


def test_states_with_other_entries_do_not_fit(client: psum.Client) -> None:
    """The text names what each side lacks."""
    with client:
        one, other = psum.ElasticState(client, {"a": {}}, epoch=0), psum.ElasticState(client, {"b": {}}, epoch=0)
        with pytest.raises(psum.InvalidError, match="the job has no a; this process has no b"):
            copy_to(one, other)


def test_what_is_no_source_is_refused_at_once(client: psum.Client) -> None:
    """Not when the first process joins, hours later."""
    read_only = np.zeros(3)
    read_only.flags.writeable = False
    with client:
        for given, text in ((3, "is a int; expected an array"), (read_only, "is a read-only array")):
            with pytest.raises(TypeError, match=text):
                psum.ElasticState(client, {"a": given})
        for name in ("", "state.epoch"):
            with pytest.raises(TypeError, match="cannot be called"):
                psum.ElasticState(client, {name: {}})


def test_a_source_that_cannot_save_is_named(client: psum.Client) -> None:
    """The members go on, and the process that wants to join gets this error."""
    with client:
        source = Source(1)
        del source.content
        with pytest.raises(psum.InvalidError, match=r"entry 'mine' of the elastic state could not be saved.*Attribute"):
            psum.ElasticState(client, {"mine": source})._save()


def test_a_process_that_joins_does_not_count_those_who_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the boundary at which it joins, another one may leave. The others do not count that one any more either."""
    last = roll_call.contribution(4, 0, roll_call.Row(1, leaving=True)) + sum(
        roll_call.contribution(4, rank, roll_call.Row(rank)) for rank in (1, 2)
    )
    monkeypatch.setattr(boundary, "join", lambda link, load: roll_call.read(last))
    link = mock.Mock(spec=Link, rank=1, joining=True, title="rank 1")
    client = mock.Mock(link=link, num_workers=2)
    try:
        state = psum.ElasticState(client)
    finally:
        termination.postpone(client, None)
    assert state.joined
    assert state.members == (1, 2)
