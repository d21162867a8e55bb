"""The tables and sentences of `psum timeline`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from psum.cli.formatting import printable, ranks
from psum.cli.timeline.step_times import KINDS, Report, Slowest
from psum.cli.timeline.traces import Trace
from psum.client.observe.trace import EXCHANGE, FORWARD

#: The most steps that are listed without --all.
_MAX_STEPS: Final = 20

#: The most ranks that are named as slow, with the cause.
_MAX_NAMED: Final = 3

#: The most ranks that are listed without --all.
_MAX_RANKS: Final = 20

#: Kinds of time that have a column only if there is such time.
_OCCASIONAL: Final = (FORWARD.kind, EXCHANGE.kind)

_CAUSES: Final = {
    "computing": "it computes for",
    "wire": "its bytes are on the wire for",
    "copy": "it copies for",
    "queue": "its shards are queued for",
}


def show(traces: Sequence[Trace], report: Report, *, everything: bool) -> RenderableType:
    """Return the report for people."""
    overall = report.mean()
    kinds = [kind for kind in KINDS if kind not in _OCCASIONAL or overall[kind]]
    return Group(
        _headline(traces, report),
        "",
        _by_rank(report, kinds, everything=everything),
        "",
        _by_step(report, kinds, everything=everything),
        "",
        *_verdict(report.slowest(), len(report.steps)),
    )


def _verdict(slowest: Sequence[Slowest], steps: int) -> Iterator[Text]:
    """Return sentences about the ranks that the others waited for, and why."""
    if not slowest:
        yield Text("The ranks hardly waited for each other.", style="green")
    for one in slowest[:_MAX_NAMED]:
        yield _sentence(one, steps)
    if len(slowest) > _MAX_NAMED:
        yield Text(f"They also waited, less long, for {ranks(sorted(one.rank for one in slowest[_MAX_NAMED:]))}.")


def _sentence(slowest: Slowest, steps: int) -> Text:
    text = (
        f"The others waited for rank {slowest.rank}: {milliseconds(slowest.waiting)} a step, the longest wait in"
        f" {slowest.steps} of {steps} steps"
    )
    if slowest.cause:
        text += (
            f"; {_CAUSES[slowest.cause]} {milliseconds(slowest.own)} a step, where the others need"
            f" {milliseconds(slowest.usual)}"
        )
    return Text(f"{text}.", style="yellow")


def as_json(traces: Sequence[Trace], report: Report) -> dict[str, Any]:
    """Return the report for programs. Times are in seconds, averaged over steps and ranks."""
    return {
        "job": traces[0].job,
        "num_workers": traces[0].num_workers,
        "seconds": _named(report.mean()),
        "ranks": [
            {
                "rank": trace.rank,
                "worker": trace.worker,
                "file": str(trace.path),
                "seconds": _named(report.mean([trace.rank])),
            }
            for trace in traces
        ],
        "steps": [
            {
                "step": step,
                "seconds": _named(report.mean(steps=[step])),
                "waited_for": report.slowest_in(step),
                "ranks": {
                    str(rank): {
                        **_named(times[step].seconds),
                        "waited_for": {str(r): seconds for r, seconds in sorted(times[step].waited_for.items())},
                    }
                    for rank, times in report.by_rank.items()
                },
            }
            for step in report.steps
        ],
        "slowest": [
            {
                "rank": one.rank,
                "steps": one.steps,
                "waiting_seconds": one.waiting,
                "cause": KINDS.get(one.cause),
                "own_seconds": one.own,
                "usual_seconds": one.usual,
            }
            for one in report.slowest()
        ],
    }


def milliseconds(seconds: float) -> str:
    """Return a time as text, always in milliseconds so that steps can be compared."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds * 1000:.0f} ms"


def _named(seconds: Mapping[str, float]) -> dict[str, float]:
    return {"total": sum(seconds.values()), **{name: seconds.get(kind, 0.0) for kind, name in KINDS.items()}}


def _headline(traces: Sequence[Trace], report: Report) -> Text:
    first, last, count = report.steps[0], report.steps[-1], len(report.steps)
    missing = sorted(set(range(traces[0].num_workers)) - {trace.rank for trace in traces})
    text = Text.assemble(
        ("job ", "bold"),
        (printable(traces[0].job), "bold"),
        f"  {f'step {first}' if count == 1 else f'{count} steps from {first} to {last}'},"
        f" {milliseconds(sum(report.mean().values()))} a step",
    )
    if missing:
        text.append(f"; files of {ranks(missing)} are missing", style="yellow")
    return text


def _by_rank(report: Report, kinds: Sequence[str], *, everything: bool) -> Table:
    table = _table("", "a step", *(KINDS[kind] for kind in kinds))
    overall = report.mean()
    total = sum(overall.values()) or 1.0
    means = {rank: report.mean([rank]) for rank in report.by_rank}
    shown = sorted(means)
    if not everything and len(shown) > _MAX_RANKS:
        # The ranks that compute longest are the most likely slow ones.
        shown = sorted(sorted(means, key=lambda rank: -means[rank]["computing"])[:_MAX_RANKS])
    for rank in shown:
        table.add_row(f"rank {rank}", *_row(means[rank], kinds))
    if len(shown) < len(means):
        table.add_row(Text(f"… {len(means) - len(shown)} more (--all)", style="dim"))
    table.add_row(Text("mean", style="bold"), *_row(overall, kinds))
    table.add_row("", "100 %", *(f"{overall[kind] / total:.0%}".replace("%", " %") for kind in kinds))
    return table


def _by_step(report: Report, kinds: Sequence[str], *, everything: bool) -> Table:
    table = _table("", "took", *(KINDS[kind] for kind in kinds), "waited for")
    means = {step: report.mean(steps=[step]) for step in report.steps}
    shown: Iterable[int] = report.steps
    if not everything and len(report.steps) > _MAX_STEPS:
        shown = sorted(sorted(means, key=lambda step: -sum(means[step].values()))[:_MAX_STEPS])
    for step in shown:
        rank = report.slowest_in(step)
        table.add_row(f"step {step}", *_row(means[step], kinds), "" if rank is None else f"rank {rank}")
    if not everything and len(report.steps) > _MAX_STEPS:
        table.add_row(Text(f"… {len(report.steps) - _MAX_STEPS} shorter ones (--all)", style="dim"))
    return table


def _row(seconds: Mapping[str, float], kinds: Sequence[str]) -> list[str]:
    return [milliseconds(sum(seconds.values())), *(milliseconds(seconds[kind]) for kind in kinds)]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, justify="left" if column in ("", "waited for") else "right", no_wrap=True)
    return table
