"""Sequences that come twice in a row."""

from hypothesis import assume, given
from hypothesis import strategies as st

from psum.torch.repetitions import LONGEST, Repetitions


def found(things: str) -> list[set[str]]:
    """What is found with each thing, in the order of the things."""
    repetitions: Repetitions[str] = Repetitions()
    return [{"".join(sequence) for sequence in repetitions.add(thing)} for thing in things]


def is_least(word: str) -> bool:
    """Whether a word is not a shorter one several times over."""
    return (word + word).find(word, 1) == len(word)


@given(st.text("abc", max_size=40))
def test_all_that_is_found_has_come_twice_in_a_row(things: str) -> None:
    """And is no shorter sequence several times over."""
    for end, words in enumerate(found(things), 1):
        assert all(is_least(word) and things[:end].endswith(2 * word) for word in words)


@given(st.text("abcd", max_size=20), st.text("abc", min_size=1, max_size=12))
def test_what_comes_three_times_in_a_row_is_found(before: str, word: str) -> None:
    """Whatever came before, and whatever shorter sequences it has in it."""
    assume(is_least(word))
    words = set.union(*found(before + 3 * word))
    assert any(len(each) == len(word) and each in 2 * word for each in words)


def test_nothing_is_found_while_a_repetition_goes_on() -> None:
    """Only when it has come twice, and again when something else has come between."""
    assert [index for index, words in enumerate(found(500 * "abc")) if words] == [5]
    assert [index for index, words in enumerate(found(4 * "abc" + "d" + 4 * "abc")) if words] == [5, 18]


def test_the_longest_repetition() -> None:
    """A sequence of that length is found when it comes again, and one that is longer is not."""
    letters = "".join(chr(0x100 + number) for number in range(LONGEST + 1))
    assert found(3 * letters[:-1])[2 * LONGEST - 1] == {letters[:-1]}
    assert not any(found(8 * letters))
