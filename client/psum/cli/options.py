"""Options that several subcommands share."""

import os
from collections.abc import Sequence
from typing import Any, Final

import click

from psum.planes import CHOICES
from psum.runtime import unknown_variables
from psum.wire.errors import ConfigurationError

#: What --plane may be.
PLANES: Final = CHOICES

aggregators_option = click.option(
    "--aggregators",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="The number of aggregators.",
)

plane_option = click.option(
    "--plane",
    envvar="PSUM_PLANE",
    type=click.Choice(PLANES),
    default="auto",
    show_default=True,
    help="How payloads cross between workers and aggregators.",
)


def check_variables() -> None:
    """Reject misspelt variables once, before each started process would reject them.

    Raises:
        ClickException: The environment has a variable that begins with PSUM_ and is not a setting of psum.
    """
    if unknown := list(unknown_variables(os.environ)):
        raise click.ClickException(str(ConfigurationError(unknown)))


class Number(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on only
    """A number, or a word for one that is chosen elsewhere, which is None.

    Args:
        word: The word.
        number: The type of the number.
    """

    def __init__(self, word: str, number: "click.ParamType[Any]") -> None:
        self._word = word
        self._number = number
        self.name = f"{word}|{number.name}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return the number, None for the word."""
        if value is None or str(value).lower() == self._word:
            return None
        number: int = self._number.convert(value, param, ctx)
        return number


class Several(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on only
    """Values separated by commas. An empty text has no values.

    Args:
        one: The type of each value.
    """

    def __init__(self, one: "click.ParamType[Any]") -> None:
        self._one = one
        self.name = f"{one.name},…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Sequence[Any]:
        """Return the values in order and without duplicates."""
        if not isinstance(value, str):
            return tuple(value)
        words = [word.strip() for word in value.split(",")] if value else []
        return tuple(dict.fromkeys(self._one.convert(word, param, ctx) for word in words))
