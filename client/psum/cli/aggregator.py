"""`psum aggregator`: one aggregator process."""

import pathlib
from typing import Any

import click

from psum.aggregator import Settings, run
from psum.runtime import declarations
from psum.wire.errors import ConfigurationError


def _flags(command: click.Command) -> click.Command:
    """Gives the command a flag for every setting, named, documented and parsed as the setting is."""
    for name, declared in declarations(Settings).items():
        flag = "--" + name.replace("_", "-")
        help_text = f"{declared.meaning} [{declared.variables[0]}; default: {declared.default_text}]"
        option: click.Option
        if declared.default_text == "off":
            option = click.Option([flag], is_flag=True, default=None, help=help_text)
        else:
            option = click.Option([flag], multiple=name == "listen", metavar="VALUE", help=help_text)
        command.params.append(option)
    # What --tls-client-ca was called before.
    command.params.append(click.Option(["--tls-ca"], hidden=True))
    return command


@click.command()
@click.option(
    "--announce",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    help="Write the addresses, one a line, to this file once they can be connected to.",
)
def aggregator(announce: pathlib.Path | None, **given: Any) -> None:
    """Sum the gradients that workers stream to it, until SIGTERM.

    Each flag may be given in the environment instead, under the name in brackets.
    """
    given["listen"] = ",".join(given["listen"]) or None
    if (ca := given.pop("tls_ca")) is not None:
        click.echo("psum: --tls-ca is called --tls-client-ca now; the old name will go", err=True)
        given["tls_client_ca"] = given["tls_client_ca"] or ca
    try:
        run(Settings.from_environment(**given), announce=announce)
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from None


_flags(aggregator)
