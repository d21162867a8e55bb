"""Options that several subcommands have."""

import click

aggregators_option = click.option(
    "--aggregators",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="How many aggregators to run.",
)

plane_option = click.option(
    "--plane",
    envvar="PSUM_PLANE",
    type=click.Choice(["auto", "inline", "direct", "shm"]),
    default="auto",
    show_default=True,
    help="How payloads cross between workers and aggregators.",
)
