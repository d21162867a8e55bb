"""`psum status`: what a fleet of aggregators does, for people or for programs."""

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click
from rich.console import Console
from rich.live import Live

from psum.cli.status.view import Fleet
from psum.client import ConnectError, Settings, fetch_status
from psum.wire import parse_destinations, report_of
from psum.wire.errors import ConfigurationError

#: Wide enough that a pipe or a file has one line for each row.
_PLAIN_WIDTH = 160

Look = Callable[[], list[dict[str, Any]]]


def _parsed(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(itertools.chain.from_iterable(map(parse_destinations, values)))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("addresses", nargs=-1, callback=_parsed, metavar="[ADDRESS]...")
@click.option("--job", default="", metavar="NAME", help="Only this job.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for programs.")
@click.option("--watch", is_flag=True, help="Look again and again, until interrupted.")
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, help="Seconds between two looks."
)
@click.option(
    "--timeout", type=click.FloatRange(0.1, 3600), default=5.0, show_default=True, help="Seconds to wait for answers."
)
@click.option("--all", "everything", is_flag=True, help="All workers of a large job, not only those that are behind.")
def status(
    addresses: tuple[str, ...],
    job: str,
    as_json: bool,
    watch: bool,
    interval: float,
    timeout: float,
    everything: bool,
) -> None:
    """Show what aggregators do: jobs, workers, and whom rounds wait for.

    By default those of PSUM_AGGREGATORS. The environment says too what files TLS and tokens need (PSUM_TLS_CA,
    PSUM_TOKEN_FILE …). Exits with status 1 where one did not answer.
    """
    try:
        settings = Settings.from_environment(aggregators=addresses or None)
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from None
    if not settings.aggregators:
        raise click.UsageError("no address was given, and PSUM_AGGREGATORS has none")

    with ThreadPoolExecutor(min(64, len(settings.aggregators))) as pool:

        def look() -> list[dict[str, Any]]:
            asked = (pool.submit(_ask, address, job, timeout, settings) for address in settings.aggregators)
            return [answer.result() for answer in list(asked)]

        with contextlib.suppress(KeyboardInterrupt):
            between, fleet = interval if watch else None, Fleet(everything=everything, job=job)
            answers = _as_json(look, between) if as_json else _as_tables(look, between, fleet)
            sys.exit(1 if any("error" in answer for answer in answers) else 0)


def _ask(address: str, job: str, timeout: float, settings: Settings) -> dict[str, Any]:
    try:
        return {"address": address, **report_of(fetch_status(address, job=job, timeout=timeout, settings=settings))}
    except (ConnectError, ConfigurationError) as error:
        return {"address": address, "error": str(error)}


def _as_json(look: Look, interval: float | None) -> Sequence[dict[str, Any]]:
    while True:
        answers = look()
        print(json.dumps({"aggregators": answers}), flush=True)
        if interval is None:
            return answers
        time.sleep(interval)


def _as_tables(look: Look, interval: float | None, fleet: Fleet) -> Sequence[dict[str, Any]]:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    if interval is None:
        answers = look()
        console.print(fleet.show(answers, time.monotonic()))
        return answers
    if not console.is_terminal:
        while True:
            console.print(fleet.show(look(), time.monotonic()))
            time.sleep(interval)
    with Live(console=console, auto_refresh=False, screen=True, vertical_overflow="ellipsis") as live:
        while True:
            live.update(fleet.show(look(), time.monotonic()), refresh=True)
            time.sleep(interval)
