"""The group of subcommands, each imported when it is used."""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import click

_COMMANDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "aggregator": "psum.cli._aggregator",
        "bench": "psum.cli._bench",
        "launch": "psum.cli._launch",
    }
)
"""The module of each subcommand; it holds a command of that name."""


class _LazyGroup(click.Group):
    """Imports a subcommand when it is asked for: an aggregator does not load what a benchmark needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(importlib.import_module(module), cmd_name)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="psum")
def main() -> None:
    """Sum the gradients of many training workers."""
