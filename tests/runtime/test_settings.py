"""Settings are parsed and checked together, and one error reports all mistakes."""

import dataclasses

import pytest

from psum.runtime import (
    BaseSettings,
    declarations,
    duration,
    integer,
    load,
    setting,
)
from psum.wire.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class Example(BaseSettings):
    count: int = setting("COUNT", "OLD_COUNT", default=1, parse=integer(1, 9), meaning="How many.")
    wait: float = setting("WAIT", default=2.0, default_text="2 s", parse=duration, meaning="How long.")


def test_defaults_hold_where_nothing_is_given() -> None:
    """An empty environment gives the defaults."""
    assert load(Example, {}, {}) == Example()


def test_a_setting_is_read_from_its_first_variable_that_is_set() -> None:
    """Its own name precedes aliases, and given values precede both. None and empty text count as not given."""
    assert load(Example, {"COUNT": "2", "OLD_COUNT": "3"}, {}).count == 2
    assert load(Example, {"COUNT": "", "OLD_COUNT": "3"}, {}).count == 3
    assert load(Example, {"COUNT": "2"}, {"count": "4", "wait": None}).count == 4
    assert load(Example, {}, {"count": 5}).count == 5


def test_every_mistake_is_listed() -> None:
    """One error lists each wrong variable with its value and what was expected."""
    with pytest.raises(ConfigurationError) as caught:
        load(Example, {"OLD_COUNT": "ten", "WAIT": "soon"}, {"colour": "red"})
    text = str(caught.value)
    assert "OLD_COUNT='ten': expected a whole number from 1 to 9" in text
    assert "WAIT='soon': expected a time such as" in text
    assert "there is no setting 'colour'; the settings are count, wait" in text
    assert len(caught.value.mistakes) == 3


def test_declarations_tell_names_defaults_and_meanings() -> None:
    """The documentation of a setting comes from its declaration."""
    declared = declarations(Example)["wait"]
    assert (declared.variables, declared.default_text, declared.meaning) == (("WAIT",), "2 s", "How long.")
