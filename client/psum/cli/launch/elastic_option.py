"""The option that says with how many workers a job goes on."""

from typing import Any

import click

from psum.client.elastic_range import Elastic, parse_elastic


class Range(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on only
    """With how many workers an elastic job goes on: min or min:max. None if it is off."""

    name = "min[:max]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Elastic | None:
        """Return the range. Its maximum is 0 if there is none."""
        if not isinstance(value, str):
            elastic: Elastic | None = value
            return elastic
        try:
            return parse_elastic(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)
