"""What `psum status` tells of the members of an elastic job."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from psum.cli.formatting import printable, ranks, seconds

#: The most changes of the members that are listed without --all.
_MAX_CHANGES: Final = 5

Answer = dict[str, Any]


def members(jobs: Sequence[Answer], *, everything: bool) -> Iterable[RenderableType]:
    """Return the members of an elastic job, who waits to join it, and its latest losses, joins and departures.

    Args:
        jobs: The job on each aggregator that sums for all its ranks. Nothing is returned if it is not elastic.
        everything: Whether to list all changes that the aggregators remember.
    """
    # Older aggregators do not say it.
    if not (found := [job["elastic"] for job in jobs if job.get("elastic") is not None]):
        return
    size, least = jobs[0]["num_workers"], found[0]["min"]
    left = min(each["members"] for each in found)
    changed = min((each["changed_seconds"] for each in found if each["changed_seconds"] is not None), default=None)
    text = f"elastic {least}:{found[0]['max']}: {left} members"
    for one, many in (("loss", "losses"), ("join", "joins"), ("departure", "departures")):
        # An aggregator that was started again does not know what was before.
        count = max(each[many] for each in found)
        text += f", {count} {one if count == 1 else many}"
    if changed is not None:
        text += f"; last change {seconds(changed)} ago"
    yield Text(text, style="red" if left < least else "yellow" if left < size else "")
    if left < least:
        yield Text(f"rounds wait: they need {least} members", style="red")
    if lost := sorted({rank for each in found for rank in each["lost"]}):
        yield Text(f"lost: {ranks(lost)}", style="yellow")
    for candidate in _candidates(found):
        yield Text(
            f"{printable(candidate['worker']) or 'an unnamed process'} has waited"
            f" {seconds(candidate['waiting_seconds'])} to join as rank {candidate['rank']}",
            style="yellow",
        )
    if changes := _changes(found):
        yield _table(changes if everything else changes[:_MAX_CHANGES])
        if not everything and len(changes) > _MAX_CHANGES:
            yield Text(f"… and {len(changes) - _MAX_CHANGES} earlier changes (--all)", style="dim")


def _candidates(found: Sequence[Answer]) -> list[Answer]:
    """Return the processes that wait at some aggregator, by rank."""
    by_rank: dict[int, Answer] = {}
    for candidate in (candidate for each in found for candidate in each["candidates"]):
        known = by_rank.setdefault(candidate["rank"], candidate)
        if candidate["waiting_seconds"] > known["waiting_seconds"]:
            by_rank[candidate["rank"]] = candidate
    return [by_rank[rank] for rank in sorted(by_rank)]


def _changes(found: Sequence[Answer]) -> list[Answer]:
    """Return the changes that some aggregator remembers, the latest first. All hear of each, so it is listed once."""
    changes: dict[tuple[str, int, int], Answer] = {}
    for event in (event for each in found for event in each["events"]):
        changes.setdefault((event["change"], event["rank"], event["generation"]), event)
    return sorted(changes.values(), key=lambda event: float(event["seconds_ago"]))


def _table(changes: Sequence[Answer]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("change", "rank", "ago", "how"):
        table.add_column(name, justify="left" if name in ("change", "how") else "right", no_wrap=name != "how")
    for event in changes:
        table.add_row(
            Text(event["change"], style="red" if event["change"] == "lost" else ""),
            str(event["rank"]),
            seconds(event["seconds_ago"]),
            Text(printable(event["text"])),
        )
    return table
