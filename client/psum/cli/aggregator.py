"""`psum aggregator`: run one aggregator process."""

import pathlib
from typing import Any

import click

from psum.aggregator import Settings, run
from psum.runtime import declarations
from psum.wire.errors import ConfigurationError


def _flags(command: click.Command) -> click.Command:
    """Give the command a flag for every setting, with the setting's name, meaning and default."""
    for name, declared in declarations(Settings).items():
        flag = "--" + name.replace("_", "-")
        help_text = f"{declared.meaning} [{declared.variables[0]}; default: {declared.default_text}]"
        option: click.Option
        if declared.default_text == "off":
            option = click.Option([flag], is_flag=True, default=None, help=help_text)
        else:
            option = click.Option([flag], multiple=name == "listen", metavar="VALUE", help=help_text)
        command.params.append(option)
    # The former name of --tls-client-ca.
    command.params.append(click.Option(["--tls-ca"], hidden=True))
    return command


@click.command()
@click.option(
    "--announce",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    help="Write the addresses to this file, one per line, as soon as the aggregator accepts connections.",
)
@click.option(
    "--end-with",
    type=click.IntRange(min=1),
    metavar="PID",
    help="The process that starts this one. When it ends, however it ends, that counts as SIGTERM.",
)
def aggregator(announce: pathlib.Path | None, end_with: int | None, **given: Any) -> None:
    """Sum the gradients that workers send, until SIGTERM.

    Each flag can be set by the environment variable in brackets instead.
    """
    given["listen"] = ",".join(given["listen"]) or None
    if (ca := given.pop("tls_ca")) is not None:
        click.echo("psum: --tls-ca is called --tls-client-ca now; the old name will be removed", err=True)
        given["tls_client_ca"] = given["tls_client_ca"] or ca
    try:
        run(Settings.from_environment(**given), announce=announce, parent=end_with)
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from None


_flags(aggregator)
