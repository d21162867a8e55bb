"""The tables of `psum status`: the aggregators of a fleet, and each job over all of them."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from psum.cli.formatting import printable, ranks, runs_of, seconds, size
from psum.cli.status.elastic import members
from psum.runtime import captioned

#: The most workers of a job that are listed without --all.
_MAX_WORKERS: Final = 20

#: The most ended jobs that are listed.
_MAX_ENDED: Final = 5

#: The most lost connections of relays that are listed.
_MAX_LOST: Final = 5

#: Ranks that others have waited for at least this long are coloured.
_BEHIND_SECONDS: Final = 1.0

Answer = dict[str, Any]


class Fleet:
    """Show answers of a fleet one after another, with the throughput since the previous answer.

    Args:
        everything: Whether to list all workers of large jobs.
        job: The requested job, empty for all.
    """

    def __init__(self, *, everything: bool, job: str = "") -> None:
        self._everything = everything
        self._only = job
        self._before: dict[tuple[str, str], tuple[float, int, int]] = {}
        """The time of the previous answer, and the bytes received and sent until then, by address and incarnation."""

    def show(self, answers: Sequence[Answer], now: float) -> RenderableType:
        """Return tables of the aggregators' answers. Each answer has an address and either a report or an error."""
        parts: list[RenderableType] = [self._aggregators(answers, now)]
        jobs: dict[str, list[tuple[str, Answer]]] = {}
        for answer in answers:
            for job in answer.get("jobs", ()):
                jobs.setdefault(job["name"], []).append((answer["address"], job))
        for name, places in jobs.items():
            parts += ["", *self._job(name, places)]
        if not jobs and (text := self._without_jobs(answers)):
            parts += ["", Text(text)]
        if ended := _ended(answers):
            parts += ["", ended]
        parts += [Text(printable(answer["error"]), style="red") for answer in answers if "error" in answer]
        return Group(*parts)

    def _without_jobs(self, answers: Sequence[Answer]) -> str:
        """Return a sentence that no job is in progress. Empty if no aggregator has answered."""
        silent = sum("error" in answer for answer in answers)
        if silent == len(answers):
            return ""
        subject = f"Job {printable(self._only)} is not" if self._only else "No job is"
        return f"{subject} in progress{' on the aggregators that answered' if silent else ''}."

    def _aggregators(self, answers: Sequence[Answer], now: float) -> Table:
        table = _table("aggregator", "state", "up", "jobs", "workers", "received", "sent", "memory", "late by")
        for answer in answers:
            if "error" in answer:
                table.add_row(Text(answer["address"]), Text("no answer", style="red"))
                continue
            own, jobs = answer["aggregator"], answer["jobs"]
            budget = size(own["memory_budget_bytes"]) if own["memory_budget_bytes"] else "no limit"
            connected = sum(worker["state"] == "connected" for job in jobs for worker in job["workers"])
            table.add_row(
                Text(answer["address"]),
                Text("drains", style="yellow") if own["draining"] else Text("serves", style="green"),
                seconds(own["uptime_seconds"]),
                # A relay that is an aggregator too has a part of a job in each role.
                str(len({job["name"] for job in jobs})),
                str(connected),
                *self._throughput(answer, now),
                f"{size(own['memory_reserved_bytes'])} of {budget}",
                seconds(own["loop_lag_seconds"]),
            )
        return table

    def _throughput(self, answer: Answer, now: float) -> tuple[str, str]:
        place = answer["address"], answer["aggregator"]["incarnation"]
        received, sent = (sum(job[name] for job in answer["jobs"]) for name in ("received_bytes", "sent_bytes"))
        before, self._before[place] = self._before.get(place), (now, received, sent)
        if before is None or now <= before[0] or received < before[1] or sent < before[2]:
            return size(received), size(sent)
        passed = now - before[0]
        return f"{size((received - before[1]) / passed)}/s", f"{size((sent - before[2]) / passed)}/s"

    def _job(self, name: str, places: Sequence[tuple[str, Answer]]) -> Iterable[RenderableType]:
        owners = [place for place in places if not place[1]["uplinks"]]
        relays = [place for place in places if place[1]["uplinks"]]
        if owners:
            yield from self._summed(name, owners)
        if relays:
            if not owners:
                yield Text.assemble(("job ", "bold"), (printable(name), "bold"))
            yield from self._relayed(relays)

    def _summed(self, name: str, places: Sequence[tuple[str, Answer]]) -> Iterable[RenderableType]:
        """Return a job on the aggregators that sum its shards for all ranks."""
        jobs = [job for _, job in places]
        workers = _merged(jobs)
        connected = sum(len(worker["ranks"]) for worker in workers if worker["connected"] == len(jobs))
        rounds = sum(job["rounds_completed"] for job in jobs)
        yield Text.assemble(
            ("job ", "bold"),
            (printable(name), "bold"),
            f"  {connected} of {jobs[0]['num_workers']} workers, {rounds} rounds done,"
            f" {sum(job['rounds_waiting'] for job in jobs)} in progress,"
            f" holds {size(sum(job['held_bytes'] for job in jobs))}",
        )
        yield from _oldest(places, "on")
        yield from members(jobs, everything=self._everything)
        if missing := sorted({rank for job in jobs for rank in job["not_joined"]}):
            yield Text(f"not joined yet: {ranks(missing)}", style="yellow")
        yield from self._workers(workers, len(jobs))

    def _relayed(self, places: Sequence[tuple[str, Answer]]) -> Iterable[RenderableType]:
        """Return a job on its relays, and the workers behind them."""
        table = _table("relay", "workers", "ranks", "forwards to", "way", "sent", "received", "under way")
        lost, incomplete = [], []
        for address, job in places:
            uplinks = job["uplinks"]
            connected = [uplink for uplink in uplinks if uplink["state"] == "connected"]
            behind = uplinks[0]["address"] if len(uplinks) == 1 else f"{len(connected)} of {len(uplinks)} aggregators"
            joined = sorted(rank for worker in job["workers"] for rank in worker["ranks"])
            if len(joined) < job["num_workers"]:
                incomplete.append(f"relay {address} waits until {job['num_workers']} workers of its group have joined")
            else:
                lost += [(address, uplink["address"]) for uplink in uplinks if uplink["state"] != "connected"]
            present = sum(len(worker["ranks"]) for worker in job["workers"] if worker["state"] == "connected")
            table.add_row(
                Text(address),
                Text(f"{present} of {job['num_workers']}", style="" if present == job["num_workers"] else "yellow"),
                runs_of(joined),
                Text(behind, style="" if len(connected) == len(uplinks) else "red"),
                " + ".join(sorted({uplink["way"] for uplink in connected} - {""})),
                size(sum(uplink["sent_bytes"] for uplink in uplinks)),
                size(sum(uplink["received_bytes"] for uplink in uplinks)),
                f"{sum(uplink['outstanding_shards'] for uplink in uplinks)} shards",
            )
        yield table
        yield from _oldest(places, "at relay")
        for text in incomplete:
            yield Text(text, style="yellow")
        for relay, address in lost[:_MAX_LOST]:
            yield Text(f"relay {relay} is not connected to {address}", style="red")
        if len(lost) > _MAX_LOST:
            yield Text(f"… and {len(lost) - _MAX_LOST} more such connections", style="red")
        workers = [{**worker, "relay": address} for address, job in places for worker in _merged([job])]
        yield from self._workers(sorted(workers, key=lambda worker: int(worker["rank"])), 1)

    def _workers(self, workers: list[Answer], places: int) -> Iterable[RenderableType]:
        shown = workers
        if not self._everything and len(workers) > _MAX_WORKERS:
            urgent = sorted(workers, key=lambda w: (w["state"] == "connected", -w["behind_seconds"], w["rank"]))
            shown = sorted(urgent[:_MAX_WORKERS], key=lambda w: int(w["rank"]))
        relay = ["relay"] if any("relay" in worker for worker in workers) else []
        table = _table("rank", *relay, "state", "behind", "heard", "received", "sent", "way", "runs at")
        for worker in shown:
            state = worker["state"] if worker["connected"] in (0, places) else f"on {worker['connected']} of {places}"
            behind = worker["behind_seconds"]
            table.add_row(
                runs_of(worker["ranks"]),
                *(Text(worker[name]) for name in relay),
                Text(state, style="" if state in ("connected", "left") else "red"),
                Text(seconds(behind), style="yellow" if behind >= _BEHIND_SECONDS else ""),
                seconds(worker["last_heard_seconds"]),
                size(worker["received_bytes"]),
                size(worker["sent_bytes"]),
                " + ".join(sorted(worker["planes"])),
                Text(printable(worker["worker"])),
            )
        yield table
        if len(shown) < len(workers):
            yield Text(f"… and {len(workers) - len(shown)} more workers (--all)", style="dim")


def _oldest(places: Sequence[tuple[str, Answer]], where: str) -> Iterable[Text]:
    """Return a line about the round that has waited longest for ranks, if any does."""
    waiting = [(one, address) for address, job in places for one in job["rounds"] if one["waiting_for"]]
    if waiting:
        oldest, address = max(waiting, key=lambda entry: entry[0]["waiting_seconds"])
        key = captioned(oldest["key"], oldest["label"])
        yield Text(
            f"round {oldest['round']} of {printable(key)} shard {oldest['shard']} {where} {address} has waited"
            f" {seconds(oldest['waiting_seconds'])} for {ranks(oldest['waiting_for'])}",
            style="yellow" if oldest["waiting_seconds"] >= _BEHIND_SECONDS else "",
        )


def _merged(jobs: Sequence[Answer]) -> list[Answer]:
    """Return the workers of a job, merged over all aggregators, by rank."""
    merged: dict[int, Answer] = {}
    for job in jobs:
        for worker in job["workers"]:
            known = merged.setdefault(worker["rank"], {**worker, "connected": 0, "planes": set()})
            known["connected"] += worker["state"] == "connected"
            if known.get("seen"):
                known["received_bytes"] += worker["received_bytes"]
                known["sent_bytes"] += worker["sent_bytes"]
                known["behind_seconds"] = max(known["behind_seconds"], worker["behind_seconds"])
                known["last_heard_seconds"] = min(known["last_heard_seconds"], worker["last_heard_seconds"])
            known["seen"] = True
            # Older aggregators do not report the plane.
            known["planes"] |= {worker["way"]} - {""}
            if worker["state"] != "connected":
                known["state"] = worker["state"]
    return [merged[rank] for rank in sorted(merged)]


def _ended(answers: Sequence[Answer]) -> Table | None:
    found = [(answer["address"], ended) for answer in answers for ended in answer.get("ended", ())]
    if not found:
        return None
    table = _table("job that ended", "on", "ago", "how")
    for address, ended in sorted(found, key=lambda entry: float(entry[1]["ended_seconds"]))[:_MAX_ENDED]:
        table.add_row(
            Text(printable(ended["name"])),
            Text(address),
            seconds(ended["ended_seconds"]),
            Text(printable(ended["failure"]) or "well", style="red" if ended["failure"] else ""),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    words = {"aggregator", "state", "way", "runs at", "job that ended", "on", "how", "relay", "ranks", "forwards to"}
    for column in columns:
        table.add_column(
            column, justify="left" if column in words else "right", no_wrap=column not in ("how", "runs at")
        )
    return table
