"""`psum timeline`: read the timelines of a job's ranks, and show where the time of a step goes."""

import json
import pathlib

import click

from psum.cli.formatting import console
from psum.cli.timeline.merging import doubts, merged
from psum.cli.timeline.step_times import Report
from psum.cli.timeline.traces import Trace, TraceError, load
from psum.cli.timeline.view import as_json, show


@click.command()
@click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=pathlib.Path, dir_okay=False)
)
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=pathlib.Path, dir_okay=False),
    help="Write one timeline of all ranks, for ui.perfetto.dev or chrome://tracing.",
)
@click.option("--json", "as_document", is_flag=True, help="Print JSON for programs.")
@click.option("--all", "everything", is_flag=True, help="List all ranks and steps of a long timeline.")
def timeline(files: tuple[pathlib.Path, ...], output: pathlib.Path | None, as_document: bool, everything: bool) -> None:
    """Show where the time of a step goes, and which rank the others wait for.

    FILE is a timeline that a worker writes if PSUM_TRACE_DIR is set. Give the files of all ranks if you can. Averages
    are over ranks and steps. See docs/slow-steps.md.
    """
    try:
        traces = load(files)
        report = Report(traces)
        for doubt in doubts(traces):
            click.echo(f"psum: {doubt}", err=True)
        if output is not None:
            _write(traces, output)
    except TraceError as error:
        raise click.ClickException(str(error)) from None
    for trace in traces:
        if trace.full:
            click.echo(f"psum: {trace.path} ends early because its steps have too many shards", err=True)
    if as_document:
        print(json.dumps(as_json(traces, report)))
    else:
        console().print(show(traces, report, everything=everything))


def _write(traces: list[Trace], output: pathlib.Path) -> None:
    if any(output.exists() and output.samefile(trace.path) for trace in traces):
        raise TraceError(f"{output} is one of the files to be merged")
    try:
        output.write_text(json.dumps(merged(traces), separators=(",", ":")), encoding="utf-8")
    except OSError as error:
        raise TraceError(f"{output} cannot be written: {error.strerror or error}") from None
