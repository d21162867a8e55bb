"""Settings are parsed and checked together, and one error reports all mistakes."""

import dataclasses

import pytest

from psum.runtime import (
    BaseSettings,
    choice,
    declarations,
    duration,
    integer,
    items,
    load,
    setting,
    size,
)
from psum.wire import grpc_options, is_local, parse_address
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


@pytest.mark.parametrize(
    ("text", "value"),
    [("1048576", 1 << 20), ("512KiB", 512 << 10), ("16 MiB", 16 << 20), ("1.5kB", 1500), ("8gib", 8 << 30)],
)
def test_sizes_have_units(text: str, value: int) -> None:
    """Sizes are bytes, with decimal and binary units."""
    assert size(text) == value


@pytest.mark.parametrize(("text", "value"), [("30", 30), ("30s", 30), ("200ms", 0.2), ("1.5 m", 90), ("1h", 3600)])
def test_times_have_units(text: str, value: float) -> None:
    """Times are seconds, with units."""
    assert duration(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "-1", "1 MiB extra", "one", "1TiB!"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """Text that is not a size raises ValueError."""
    with pytest.raises(ValueError, match="expected a size"):
        size(text)


@pytest.mark.parametrize("text", ["", "0", "-3", "inf", "3 days", "0.9ms", "481h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """Text that is not a time above zero raises ValueError."""
    with pytest.raises(ValueError, match="expected a time"):
        duration(text)


def test_choices_and_lists() -> None:
    """Words match in any case. Lists ignore empty items."""
    assert choice("auto", "inline")(" Inline") == "inline"
    with pytest.raises(ValueError, match="expected one of auto, inline"):
        choice("auto", "inline")("fast")
    assert items(integer(0, 9))("1, 2,,3,") == (1, 2, 3)


@pytest.mark.parametrize(
    "text", ["127.0.0.1:50051", "localhost:0", "[::1]:80", "psum-0.psum:50051", "unix:/run/psum.sock"]
)
def test_addresses_are_accepted_as_they_are(text: str) -> None:
    """host:port, [ipv6]:port and unix:/path are addresses."""
    assert parse_address(f" {text} ") == text


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":50051", "host:99999", "::1:50051", "http://host:1", "unix:", "unix:" + "x" * 108]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """Other text raises ValueError."""
    with pytest.raises(ValueError, match=r"expected|at most"):
        parse_address(text)


def test_local_addresses_are_told_from_those_that_others_can_reach() -> None:
    """Loopback addresses and unix sockets are local. Names and other addresses are not."""
    assert all(map(is_local, ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "unix:/x"]))
    assert not any(map(is_local, ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "psum-0.psum:1"]))


def test_a_size_beyond_all_memory_is_a_mistake_in_words() -> None:
    """Any number of digits gives a clear error."""
    with pytest.raises(ValueError, match="less than"):
        size("9" * 400)


@pytest.mark.parametrize("keepalive", [0.0001, 1e9])
def test_any_keepalive_gives_options_that_grpc_takes(keepalive: float) -> None:
    """gRPC's options are whole numbers of 31 bits, and 0 has another meaning."""
    assert all(0 <= value < 2**31 for _, value in grpc_options(keepalive))
    assert dict(grpc_options(keepalive))["grpc.keepalive_time_ms"] > 0
