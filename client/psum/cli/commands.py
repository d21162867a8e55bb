"""The group of subcommands. Each is imported only when it is used."""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import click

_COMMANDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "aggregator": "psum.cli.aggregator",
        "bench": "psum.cli.bench.command",
        "launch": "psum.cli.launch.command",
        "status": "psum.cli.status.command",
        "timeline": "psum.cli.timeline.command",
    }
)
"""The module of each subcommand. It defines a command of the same name."""


class _LazyGroup(click.Group):
    """Import a subcommand only when it is used, so that an aggregator does not load the libraries of a benchmark."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        try:
            command: click.Command = getattr(importlib.import_module(module), cmd_name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("psum."):
                raise
            return _unusable(cmd_name, error.name)
        return command


def _unusable(name: str, missing: str) -> click.Command:
    """Return a command that says how to install what a subcommand needs."""
    text = f"Needs {missing}, which is not installed: pip install 'psum[{name}]'"

    def refuse() -> None:
        raise click.ClickException(f"psum {name}: {text[0].lower()}{text[1:]}")

    return click.Command(
        name, callback=refuse, help=text, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
    )


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="psum")
def main() -> None:
    """Sum the gradients of many training workers."""
