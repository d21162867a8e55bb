"""Lists of addresses, and ranges in them."""

import pytest

from psum.runtime import parse_destinations
from psum.runtime.address_ranges import MAX_ADDRESSES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        (" , ", ()),
        ("a:1", ("a:1",)),
        ("a:1, unix:/b,", ("a:1", "unix:/b")),
        ("a-{0..2}.b:1", ("a-0.b:1", "a-1.b:1", "a-2.b:1")),
        ("a-{7..7}:1", ("a-7:1",)),
        ("a{8..10}:1", ("a8:1", "a9:1", "a10:1")),
        ("a{08..10}:1", ("a08:1", "a09:1", "a10:1")),
        ("b:1,a-{1..2}:1,c:1", ("b:1", "a-1:1", "a-2:1", "c:1")),
        ("10.0.0.{1..2}:1", ("10.0.0.1:1", "10.0.0.2:1")),
        ("a:{1..2}", ("a:1", "a:2")),
        ("unix:/tmp/{0..1}.sock", ("unix:/tmp/0.sock", "unix:/tmp/1.sock")),
    ],
)
def test_a_range_stands_for_its_addresses_in_order(text: str, expected: tuple[str, ...]) -> None:
    """They replace the range within the list. Leading zeros are kept, as in a shell."""
    assert parse_destinations(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a-{2..0}:1", r"\{2\.\.0\} .* has its larger number first"),
        ("a-{0..4096}:1", r"\{0\.\.4096\} .* has 4097 numbers; at most 4096"),
        ("a-{0..999999999}:1", "at most 4096"),
        ("a-{0..9999999999}:1", "braces without a range"),
        ("a-{0..1}.b-{0..1}:1", "more than one range"),
        ("a-{0..1}}:1", "more than one range"),
        ("a-{0,1}:1", "braces without a range"),
        ("a-{0..}:1", "braces without a range"),
        ("a-{-1..1}:1", "braces without a range"),
        ("a-{x..z}:1", r"expected a range such as \{0\.\.15\}"),
        ("a-{0..2}", "expected host:port"),
        ("a:{65535..65536}", "'a:65536' is not an address"),
    ],
)
def test_what_is_no_range_is_refused(text: str, complaint: str) -> None:
    """The error shows the item and what was expected, and no long list is made before."""
    with pytest.raises(ValueError, match=complaint):
        parse_destinations(text)


def test_a_list_of_several_ranges_is_bounded_as_well() -> None:
    """The limit holds for the whole list too."""
    assert len(parse_destinations(f"a{{1..{MAX_ADDRESSES}}}:1")) == MAX_ADDRESSES
    with pytest.raises(ValueError, match=f"the list has {MAX_ADDRESSES + 1} addresses"):
        parse_destinations(f"a{{1..{MAX_ADDRESSES}}}:1,b:1")
