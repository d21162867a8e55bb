"""`psum status`: show what a fleet of aggregators does, for people or for programs."""

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click
from rich.live import Live

from psum.cli.formatting import console
from psum.cli.status.view import Fleet
from psum.client import ConnectError, Settings, addresses_behind, fetch_status
from psum.client.relay_levels import OFF
from psum.runtime import parse_destinations
from psum.wire import report_of
from psum.wire.errors import ConfigurationError

Look = Callable[[], list[dict[str, Any]]]


def _parsed(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(itertools.chain.from_iterable(map(parse_destinations, values)))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("addresses", nargs=-1, callback=_parsed, metavar="[ADDRESS]...")
@click.option("--job", default="", metavar="NAME", help="Show only this job.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for programs.")
@click.option("--watch", is_flag=True, help="Update until interrupted.")
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, help="Seconds between updates."
)
@click.option(
    "--timeout", type=click.FloatRange(0.1, 3600), default=5.0, show_default=True, help="Seconds to wait for answers."
)
@click.option("--all", "everything", is_flag=True, help="List all workers of a large job, not only slow ones.")
def status(
    addresses: tuple[str, ...],
    job: str,
    as_json: bool,
    watch: bool,
    interval: float,
    timeout: float,
    everything: bool,
) -> None:
    """Show what aggregators do: jobs, workers, and which ranks rounds wait for.

    An aggregator that has several processes (PSUM_PROCESSES) has a line for each.

    The default addresses are those of PSUM_AGGREGATORS. The environment also names the files for TLS and tokens
    (PSUM_TLS_CA, PSUM_TOKEN_FILE, …). The exit status is 1 if an aggregator does not answer.
    """
    try:
        # This process asks the aggregators themselves, so its token must be safe on the way to each of them.
        settings = Settings.from_environment(aggregators=addresses or None, relay=OFF)
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from None
    if not settings.aggregators:
        raise click.UsageError("no address is given, and PSUM_AGGREGATORS is not set; give one, such as 10.0.0.5:50051")

    with ThreadPoolExecutor(min(64, len(settings.aggregators))) as pool:

        def look() -> list[dict[str, Any]]:
            asked = [pool.submit(_ask, address, job, timeout, settings) for address in settings.aggregators]
            answers = itertools.chain.from_iterable(each.result() for each in asked)
            # A list may have all processes of an aggregator, of which the first one leads to the others too.
            return list({answer["address"]: answer for answer in answers}.values())

        with contextlib.suppress(KeyboardInterrupt):
            between, fleet = interval if watch else None, Fleet(everything=everything, job=job)
            answers = _as_json(look, between) if as_json else _as_tables(look, between, fleet)
            sys.exit(1 if any("error" in answer for answer in answers) else 0)


def _ask(address: str, job: str, timeout: float, settings: Settings) -> list[dict[str, Any]]:
    """Return an answer of each process of an aggregator: a report or an error, with its address."""
    try:
        status = fetch_status(address, job=job, timeout=timeout, settings=settings)
        _, *others = addresses_behind(address, status)
    except (ConnectError, ConfigurationError) as error:
        return [{"address": address, "error": str(error)}]
    answers = [{"address": address, **report_of(status)}]
    for other in others:
        # Only the first process knows the others, so this ends here.
        answers += _ask(other, job, timeout, settings)
    return answers


def _as_json(look: Look, interval: float | None) -> Sequence[dict[str, Any]]:
    while True:
        answers = look()
        print(json.dumps({"aggregators": answers}), flush=True)
        if interval is None:
            return answers
        time.sleep(interval)


def _as_tables(look: Look, interval: float | None, fleet: Fleet) -> Sequence[dict[str, Any]]:
    output = console()
    if interval is None:
        answers = look()
        output.print(fleet.show(answers, time.monotonic()))
        return answers
    if not output.is_terminal:
        while True:
            output.print(fleet.show(look(), time.monotonic()))
            time.sleep(interval)
    with Live(console=output, auto_refresh=False, screen=True, vertical_overflow="ellipsis") as live:
        while True:
            live.update(fleet.show(look(), time.monotonic()), refresh=True)
            time.sleep(interval)
